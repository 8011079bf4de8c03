"""Attention masks of tree passes, by kind of layer."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from mmspec.engine.cache import TreeCache


def masks_of(
    decoder: PreTrainedModel,
    windows: dict[str, int],
    cache: TreeCache,
    ancestors: Bool[Tensor, "sequence node node"],
    depths: Int[Tensor, "sequence node"],
) -> dict[str, Tensor]:
    """The mask of every kind of layer, as `windows_of` names them.

    All entries are kept, and those outside a window are masked.
    """
    whole, masks = cache.mask(ancestors), {}
    query, key = cache.indices(depths) if any(windows.values()) else (depths, depths)
    for kind, window in windows.items():
        mask = whole
        if window and kind == "sliding_attention":
            mask = whole & (key > query - window)[:, None]
        elif window and kind == "chunked_attention":
            mask = whole & (key // window == query // window)[:, None]
        masks[kind] = as_attention_takes(decoder, mask)
    return masks


def as_attention_takes(decoder: PreTrainedModel, mask: Bool[Tensor, "row 1 node slot"]) -> Tensor:
    """A mask as it is, or as what eager attention adds to its weights."""
    if decoder.config._attn_implementation != "eager":
        return mask
    return torch.zeros_like(mask, dtype=decoder.dtype).masked_fill(~mask, torch.finfo(decoder.dtype).min)


def windows_of(config: PreTrainedConfig) -> dict[str, int]:
    """The kinds of a decoder's attention layers, each with its window or chunk; 0 for all that came before."""
    sizes = {
        "sliding_attention": getattr(config, "sliding_window", None) or 0,
        "chunked_attention": getattr(config, "attention_chunk_size", None) or 0,
    }
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or []))
    if not kinds:  # one kind for all layers
        kinds = ["sliding_attention" if sizes["sliding_attention"] else "full_attention"]
    return {kind: sizes.get(kind, 0) for kind in kinds}
