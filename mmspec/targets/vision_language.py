"""Vision-language models of transformers as targets: images become vectors in the prompt, everything after is text."""

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.engine.state import PromptEmbeds
from mmspec.errors import MmspecError
from mmspec.targets.base import Prompts
from mmspec.targets.causal import CausalTarget

# Model types whose images enter as plain vectors in the place of image tokens, under a causal mask.
FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl")


@dataclass(frozen=True, slots=True)
class VisualPrompts(Prompts):
    """Token ids of every row, image tokens included, and what the processor made of the row's images (`pixel_values`,
    ...).
    """

    images: list[dict[str, Tensor]] = field(default_factory=list)

    def select(self, rows: slice, guidance: float) -> "VisualPrompts":
        return VisualPrompts(self.conditional[rows], images=self.images[rows])

    def repeat_first(self, rows: int) -> "VisualPrompts":
        return VisualPrompts(self.conditional[:1] * rows, images=self.images[:1] * rows)

    @classmethod
    def of(cls, rows: list[dict[str, Tensor]]) -> "VisualPrompts":
        """From a processor's output for each row alone (`return_tensors="pt"`)."""
        text = ("input_ids", "attention_mask")
        return cls(
            [row["input_ids"][0].tolist() for row in rows],
            images=[{key: value for key, value in row.items() if key not in text} for row in rows],
        )


class VisionLanguageTarget(CausalTarget):
    """A `LlavaForConditionalGeneration` or a relative of it.

    Each row's images are read alone, so that a batch gives what singles give.
    """

    families = FAMILIES

    def __init__(self, model: PreTrainedModel, weights_hash: str = "", check: bool = True):
        if model.config.model_type not in FAMILIES:
            raise MmspecError(
                f"{type(model).__name__} is no vision-language model that mmspec reads: use one of "
                f"{', '.join(FAMILIES)}"
            )
        super().__init__(model, weights_hash=weights_hash, check=check)

    def find_decoder(self) -> PreTrainedModel:
        return self.model.base_model.language_model

    def embed_prompts(self, prompts: Prompts) -> list[PromptEmbeds]:
        images = prompts.images if isinstance(prompts, VisualPrompts) else []
        return [
            self._embed_prompt(
                torch.tensor(ids, device=self.device), {key: value.to(self.device) for key, value in inputs.items()}
            )
            for ids, inputs in zip(prompts.conditional, images or [{}] * len(prompts.conditional), strict=True)
        ]

    def _embed_prompt(self, ids: Tensor, inputs: dict[str, Tensor]) -> PromptEmbeds:
        """One prompt, with image features in the place of image tokens."""
        if "pixel_values_videos" in inputs:
            raise MmspecError("videos are not supported: give images")
        body: Any = self.model.base_model
        is_text = ids != self.model.config.image_token_id
        vectors, positions, shift = (
            self.model.get_input_embeddings()(ids),
            torch.arange(len(ids), device=self.device),
            0,
        )
        has_rope_index = hasattr(body, "get_rope_index")
        if "pixel_values" in inputs:
            parameters = inspect.signature(body.get_image_features).parameters
            options = {key: value for key, value in inputs.items() if key in parameters}
            options["pixel_values"] = options["pixel_values"].to(self.dtype)
            output = body.get_image_features(**options, return_dict=True).pooler_output
            features = torch.cat([part.flatten(0, -2) for part in output])
            vectors = vectors.clone()
            vectors[~is_text] = features.to(vectors.dtype)
            if has_rope_index:
                axes, delta = body.get_rope_index(
                    ids[None], mm_token_type_ids=(~is_text).int()[None], image_grid_thw=inputs["image_grid_thw"]
                )
                positions, shift = axes[:, 0], int(delta)
        elif not is_text.all():
            raise MmspecError(f"the prompt has {int((~is_text).sum())} image tokens and no image: give its images too")
        if has_rope_index and positions.ndim == 1:
            positions = positions.expand(3, -1)
        return PromptEmbeds(vectors, positions, is_text, shift)
