"""Weights in blocks of 32, as GGUF stores them (Q4_1, Q8_0), and low-rank updates to them: read, undone and merged on
loading.
"""

import json
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmspec.errors import MmspecError

BYTES = {"Q4_1": 20, "Q8_0": 34}
INDEX = "blocks.json"


def dequantise(kind: str, raw: UInt8[Tensor, "out bytes"]) -> Float[Tensor, "out in"]:
    """Rows of blocks as float32. A Q4_1 block is a float16 scale, a float16 minimum, and 32 nibbles (the low ones
    first); a Q8_0 block is a float16 scale and 32 signed bytes (llama.cpp).
    """
    blocks = raw.unflatten(1, (-1, BYTES[kind]))
    scale = blocks[..., :2].contiguous().view(torch.float16).float()
    if kind == "Q8_0":
        return (blocks[..., 2:].contiguous().view(torch.int8) * scale).flatten(1)
    least = blocks[..., 2:4].contiguous().view(torch.float16).float()
    nibbles = torch.cat([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], -1)
    return (nibbles * scale + least).flatten(1)


def load(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """A folder's tensors in `dtype`: blocks undone, updates `NAME.lora_A` and `NAME.lora_B` merged into them, all
    others as they are.
    """
    try:
        index = json.loads((folder / INDEX).read_text())
        kinds, scale = index["kinds"], float(index["scale"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MmspecError(f"{folder / INDEX} cannot be read ({error!r}): restore it from the model's source") from None
    stored: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        stored |= load_file(path)
    foreign = set(kinds.values()) - BYTES.keys()
    if foreign:
        raise MmspecError(
            f"{folder / INDEX} has blocks of kind {min(foreign)!r}; known are {', '.join(BYTES)}: restore the file"
        )
    missing = kinds.keys() - stored.keys()
    if missing:
        raise MmspecError(f"{folder} lacks {min(missing)}, which {INDEX} names: restore the file that holds it")
    halves = {name for name in stored if name.endswith((".lora_A", ".lora_B"))}
    missing = {name[:-1] + other for name in halves for other in "AB"} - halves
    if missing:
        raise MmspecError(
            f"{folder} lacks {min(missing)}, one half of a low-rank update: restore the file that holds it"
        )
    stored = {name: dequantise(kinds[name], value) if name in kinds else value for name, value in stored.items()}
    weights = {}
    for name, value in stored.items():
        if name.endswith((".lora_A", ".lora_B")):
            continue
        if f"{name}.lora_A" in stored:
            value = value.float() + scale * stored[f"{name}.lora_B"].float() @ stored[f"{name}.lora_A"].float()
        weights[name] = value.to(dtype)
    return weights


def save(folder: Path, kinds: dict[str, str], files: dict[str, dict[str, Tensor]], scale: float) -> None:
    """Write `files[NAME]` to NAME.safetensors, and which tensors are blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in files.items():
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")
    (folder / INDEX).write_text(json.dumps({"scale": scale, "kinds": kinds}, indent=1) + "\n")
