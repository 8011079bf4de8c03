"""Vision-language models of transformers as targets: images become vectors in the prompt, everything after is text."""

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.engine.state import PromptEmbeds
from mmspec.errors import MmspecError
from mmspec.targets.causal import CausalTarget, Prompts

# Model types whose images enter as plain vectors in the place of image tokens, under a causal mask.
FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl")


@dataclass(frozen=True, slots=True)
class VisualPrompts(Prompts):
    """Token ids of every row, image tokens included, and what the processor made of the row's images (`pixel_values`, ...)."""

    images: list[dict[str, Tensor]] = field(default_factory=list)

    def part(self, rows: slice, guidance: float) -> "VisualPrompts":
        return VisualPrompts(self.conditional[rows], images=self.images[rows])

    def alike(self, rows: int) -> "VisualPrompts":
        return VisualPrompts(self.conditional[:1] * rows, images=self.images[:1] * rows)

    @classmethod
    def of(cls, rows: list[dict[str, Tensor]]) -> "VisualPrompts":
        """From a processor's output for each row alone (`return_tensors="pt"`)."""
        dropped = ("input_ids", "attention_mask")
        return cls(
            [row["input_ids"][0].tolist() for row in rows],
            images=[{k: v for k, v in row.items() if k not in dropped} for row in rows],
        )


class VisionLanguageTarget(CausalTarget):
    """A `LlavaForConditionalGeneration` or a relative of it; each row's images are read alone, so that a batch gives what singles give."""

    def __init__(self, model: PreTrainedModel, weights_hash: str = ""):
        if model.config.model_type not in FAMILIES:
            raise MmspecError(
                f"{type(model).__name__} is no vision-language model that mmspec reads: use one of {', '.join(FAMILIES)}"
            )
        super().__init__(model, weights_hash=weights_hash)
        self.decoder = model.base_model.language_model

    def read(self, prompts: Prompts) -> list[PromptEmbeds]:
        images = prompts.images if isinstance(prompts, VisualPrompts) else []
        found = []
        for ids, seen in zip(prompts.conditional, images or [{}] * len(prompts.conditional), strict=True):
            found.append(
                self._read(
                    torch.tensor(ids, device=self.device), {key: value.to(self.device) for key, value in seen.items()}
                )
            )
        return found

    def _read(self, ids: Tensor, seen: dict[str, Tensor]) -> PromptEmbeds:
        if "pixel_values_videos" in seen:
            raise MmspecError("videos are not supported: give images")
        text = ids != self.model.config.image_token_id
        vectors, places, shift = self.embed(ids), torch.arange(len(ids), device=self.device), 0
        if "pixel_values" in seen:
            body: Any = self.model.base_model
            known = inspect.signature(body.get_image_features).parameters
            options = {key: value for key, value in seen.items() if key in known}
            options["pixel_values"] = options["pixel_values"].to(self.dtype)
            features = torch.cat(
                [part.flatten(0, -2) for part in body.get_image_features(**options, return_dict=True).pooler_output]
            )
            vectors = vectors.clone()
            vectors[~text] = features.to(vectors.dtype)
            if hasattr(body, "get_rope_index"):
                kinds = (~text).int()[None]
                axes, ahead = body.get_rope_index(
                    ids[None], mm_token_type_ids=kinds, image_grid_thw=seen["image_grid_thw"]
                )
                places, shift = axes[:, 0], int(ahead)
        elif not text.all():
            raise MmspecError(f"the prompt has {int((~text).sum())} image tokens and no image: give its images too")
        if hasattr(self.model.base_model, "get_rope_index") and places.ndim == 1:
            places = places.expand(3, -1)
        return PromptEmbeds(vectors, places, text, shift)
