"""Devices and dtypes by the names that users type."""

import pytest
import torch

from mmspec.errors import MmspecError
from mmspec.placement import available_devices, check_pair, device_of, dtype_of


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
        ("float64", torch.float64),
        ("bfloat16", torch.bfloat16),
        (torch.float32, torch.float32),
    ],
)
def test_dtypes(name: str | torch.dtype, dtype: torch.dtype) -> None:
    assert dtype_of(name) == dtype


def test_wrong_dtypes() -> None:
    with pytest.raises(MmspecError, match="unknown dtype 'fp61': did you mean"):
        dtype_of("fp61")
    with pytest.raises(MmspecError, match="dtype torch.int8 is not supported: use one of fp64, fp32, bf16, fp16"):
        dtype_of(torch.int8)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is the first GPU, or the CPU without one; a GPU that is not there is named with how many there are."""
    assert device_of("cpu") == device_of(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(None).type == "cpu" and not any(name.startswith("cuda") for name in available_devices())
    with pytest.raises(MmspecError, match="device 'cuda' is not available here: use one of cpu"):
        device_of("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of(None) == torch.device("cuda") and device_of("cuda:1").index == 1
    assert available_devices()[:3] == ["cpu", "cuda:0", "cuda:1"]
    with pytest.raises(MmspecError, match=r"device 'cuda:2' does not exist: this machine has 2 GPU\(s\)"):
        device_of("cuda:2")


def test_unknown_device() -> None:
    with pytest.raises(MmspecError, match="unknown device 'gpu'"):
        device_of("gpu")


def test_pairs() -> None:
    check_pair(torch.device("cpu"), torch.float64)
    check_pair(torch.device("mps"), torch.float32)
    with pytest.raises(MmspecError, match="fp64 does not run on mps"):
        check_pair(torch.device("mps"), torch.float64)
