"""Where a model runs and in which precision, from the names that users type."""

import torch

from mmspec.errors import MmspecError, unknown

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(name: str | torch.dtype) -> torch.dtype:
    """`dtype_of("bf16")`; torch's own names and dtypes pass too."""
    if isinstance(name, torch.dtype):
        if name not in DTYPES.values():
            raise MmspecError(f"dtype {name} is not supported: use one of {', '.join(DTYPES)}")
        return name
    full = {str(value).removeprefix("torch."): value for value in DTYPES.values()}
    found = DTYPES.get(str(name)) or full.get(str(name))
    if found is None:
        raise unknown("dtype", name, DTYPES)
    return found


def device_of(name: str | torch.device | None) -> torch.device:
    """`device_of("cuda:1")`, checked to exist here; None is the first GPU if there is one, else the CPU."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", str(name), available()) from None
    if device.type not in {torch.device(one).type for one in available()}:
        raise MmspecError(f"device '{device}' is not available here: use one of {', '.join(available())}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MmspecError(
            f"device '{device}' does not exist: this machine has {torch.cuda.device_count()} GPU(s), counted from cuda:0"
        )
    return device


def available() -> list[str]:
    """Names of the devices of this machine."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def check_pair(device: torch.device, dtype: torch.dtype) -> None:
    """Refuse what the device cannot compute in."""
    if device.type == "mps" and dtype == torch.float64:
        raise MmspecError("fp64 does not run on mps: use --device cpu, or fp32")
