"""What `generate` of transformers was given, as prompts of single rows."""

import inspect
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers.utils import ModelOutput

from mmspec.errors import MmspecError
from mmspec.targets.causal import CausalTarget
from mmspec.targets.encoder_decoder import encoded_rows
from mmspec.targets.vision_language import VisualPrompts

# What `generate` passes on beside what the model's forward is given for its prompt.
NO_INPUTS = {"input_ids", "attention_mask", "position_ids", "use_cache", "logits_to_keep", "cache", "past_key_values"}

# Families whose `generate` is given vectors for their prompts, and inputs that belong to a row as a whole.
READ_VECTORS = ("qwen2_5_omni_talker",)
OF_A_ROW = {"thinker_reply_part"}


def prompts_of(
    target: CausalTarget,
    input_ids: Int[Tensor, "row position"],
    model_kwargs: dict[str, object],
    asked: dict[str, object],
    copies: int,
) -> VisualPrompts:
    """Every row without its padding, and what belongs to it of the model's other inputs.

    Pictures are among what `generate` was `asked`, for every row once; `generate` has made `copies` of each.
    """
    encoded = model_kwargs.get("encoder_outputs")
    given = model_kwargs.get("attention_mask" if encoded is None else "decoder_attention_mask")
    mask = torch.ones_like(input_ids, dtype=torch.bool) if not isinstance(given, Tensor) else given.bool()
    if not bool((mask.long().diff(dim=1) >= 0).all()):
        raise MmspecError("attention_mask hides ids after others: pad on the left, as generate wants it")
    names = inspect.signature(target.model.forward).parameters.keys() - NO_INPUTS
    encodes = bool(model_kwargs.get("mm_encoder_outputs"))  # `generate` of 5.24 encodes pictures before this
    source = model_kwargs | (asked if encodes else {})
    inputs = {name: value for name, value in source.items() if isinstance(value, Tensor) and name in names}
    if inputs and encoded is None and not target.families:
        raise MmspecError(
            f"{', '.join(inputs)} would be read with the prompt alone, and not with what is generated: leave out"
        )
    rows = list(zip(input_ids, mask, strict=True))
    if target.model.config.model_type in READ_VECTORS:  # `generate` drops a mask of ones, which the talker misses
        inputs["attention_mask"] = mask.long() if isinstance(given, Tensor) else mask.long()[:, :0]
    return VisualPrompts(
        [ids[seen].tolist() for ids, seen in rows],
        padding=[ids[~seen].tolist() for ids, seen in rows],
        images=encoded_rows(encoded, model_kwargs.get("attention_mask"))
        if isinstance(encoded, ModelOutput)
        else _inputs(target, input_ids, mask, inputs, copies if encodes else 1),
    )


def _inputs(
    target: CausalTarget,
    input_ids: Int[Tensor, "row position"],
    mask: Bool[Tensor, "row position"],
    inputs: dict[str, Tensor],
    copies: int,
) -> list[dict[str, Tensor]]:
    """The part of the inputs that belongs to each row; they have one for every `copies` rows."""
    parts = _inputs_of_rows(target, input_ids[::copies], mask[::copies], inputs)
    return [part for part in parts for _ in range(copies)]


def _inputs_of_rows(
    target: CausalTarget,
    input_ids: Int[Tensor, "row position"],
    mask: Bool[Tensor, "row position"],
    inputs: dict[str, Tensor],
) -> Iterator[dict[str, Tensor]]:
    """The part of the inputs that belongs to each row."""
    rows, patches, pictures = len(input_ids), 0, 0
    media = [bool((~target.is_text(ids)).any()) for ids in input_ids]
    grid = inputs.get("image_grid_thw")
    per_token = getattr(getattr(target.model.config, "vision_config", None), "spatial_merge_size", 1) ** 2
    for row, (ids, seen) in enumerate(zip(input_ids, mask, strict=True)):
        part: dict[str, Tensor] = {}
        if grid is not None and "pixel_values" in inputs:  # all patches one after the other, as Qwen2-VL takes them
            first, start, wanted = pictures, patches, int((~target.is_text(ids)).sum()) * per_token
            one_each = len(grid) == rows and all(media)
            while pictures < len(grid) and (rows == 1 or (pictures == first if one_each else patches - start < wanted)):
                patches, pictures = patches + int(grid[pictures].prod()), pictures + 1
            if rows > 1 and not one_each and patches - start != wanted:
                raise MmspecError(
                    "pictures have not as many patches as their rows have tokens for, so it is not known which belong "
                    "to which: generate one row at a time"
                )
            if pictures > first:
                part["image_grid_thw"] = grid[first:pictures]
                part["pixel_values"] = inputs["pixel_values"][start:patches]
        for name, value in inputs.items():
            if grid is not None and "pixel_values" in inputs and name in ("image_grid_thw", "pixel_values"):
                continue
            if value.shape[:2] == input_ids.shape and name not in OF_A_ROW:
                part[name] = value[row : row + 1, seen]
            elif rows == 1:
                part[name] = value
            elif len(value) == rows and (all(media) or not any(media)):
                part[name] = value[row : row + 1]
            else:
                raise MmspecError(
                    f"{name} has {len(value)} entries for {rows} rows, of which {sum(media)} have pictures or sounds: "
                    "it is not known which belong to which, so generate one row at a time"
                )
        yield part
