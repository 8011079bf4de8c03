"""The device and the dtype of a model, from the names that users type."""

import re
from typing import TYPE_CHECKING

from mmspec.errors import MmspecError, unknown

if TYPE_CHECKING:
    import torch

# torch's names of the dtypes, by their short names.
DTYPES = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def check_names(dtype: str, device: str) -> None:
    """Raise MmspecError for names that stand for no dtype or device anywhere, without importing torch."""
    if dtype not in DTYPES and dtype not in DTYPES.values():
        raise unknown("dtype", dtype, DTYPES)
    if not DEVICE.fullmatch(device):
        raise unknown("device", device, ("auto", "cpu", "cuda", "cuda:N", "mps"))


def dtype_of(name: "str | torch.dtype") -> "torch.dtype":
    """The dtype of a short name such as `"bf16"`, of torch's own name, or of a dtype itself; MmspecError for others."""
    import torch

    dtypes = {short: getattr(torch, long) for short, long in DTYPES.items()}
    if isinstance(name, torch.dtype):
        if name not in dtypes.values():
            raise MmspecError(f"dtype {name} is not supported: use one of {', '.join(DTYPES)}")
        return name
    dtype = dtypes.get(str(name)) or {DTYPES[short]: dtypes[short] for short in DTYPES}.get(str(name))
    if dtype is None:
        raise unknown("dtype", name, DTYPES)
    return dtype


def device_of(name: "str | torch.device | None") -> "torch.device":
    """The device of a name such as `"cuda:1"`, checked to exist here; None is the first GPU, or the CPU without one."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", str(name), available_devices()) from None
    if device.type not in {torch.device(available).type for available in available_devices()}:
        raise MmspecError(f"device '{device}' is not available here: use one of {', '.join(available_devices())}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MmspecError(
            f"device '{device}' does not exist: this machine has {torch.cuda.device_count()} GPU(s), "
            "counted from cuda:0"
        )
    return device


def available_devices() -> list[str]:
    """The names of the devices of this machine."""
    import torch

    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def check_pair(device: "torch.device", dtype: "torch.dtype") -> None:
    """Raise MmspecError if the device cannot compute in the dtype."""
    import torch

    if device.type == "mps" and dtype == torch.float64:
        raise MmspecError("fp64 does not run on mps: use --device cpu, or fp32")


def has_fast_bf16(device: "torch.device") -> bool:
    """Whether 16-bit products are faster than those in float32: on GPUs, and on x86 CPUs with AVX-512."""
    import torch

    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512"
