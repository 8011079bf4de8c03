"""The device and the dtype of a model, from the names that users type."""

import torch

from mmspec.errors import MmspecError, unknown

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(name: str | torch.dtype) -> torch.dtype:
    """The dtype of a short name such as `"bf16"`, of torch's own name, or of a dtype itself; MmspecError for others."""
    if isinstance(name, torch.dtype):
        if name not in DTYPES.values():
            raise MmspecError(f"dtype {name} is not supported: use one of {', '.join(DTYPES)}")
        return name
    torch_names = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
    dtype = DTYPES.get(str(name)) or torch_names.get(str(name))
    if dtype is None:
        raise unknown("dtype", name, DTYPES)
    return dtype


def device_of(name: str | torch.device | None) -> torch.device:
    """The device of a name such as `"cuda:1"`, checked to exist here; None is the first GPU, or the CPU without one."""
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
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def check_pair(device: torch.device, dtype: torch.dtype) -> None:
    """Raise MmspecError if the device cannot compute in the dtype."""
    if device.type == "mps" and dtype == torch.float64:
        raise MmspecError("fp64 does not run on mps: use --device cpu, or fp32")
