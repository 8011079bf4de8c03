"""Vision-language models of transformers as targets: images become vectors in the prompt, everything after is text."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.errors import MmspecError
from mmspec.targets.base import Prompts
from mmspec.targets.causal import CausalTarget
from mmspec.targets.registry import READERS

# Where configurations name the token that stands for a picture or a sound.
MEDIA_IDS = {"image": ("image_token_id", "image_token_index"), "audio": ("audio_token_id", "audio_token_index")}


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
    """A model of transformers that reads pictures or sounds into its prompt and answers with text.

    Each row is read alone, by the model's own forward, so that a batch gives what singles give.
    """

    families = READERS

    def __init__(self, model: PreTrainedModel, weights_hash: str = "", check: bool = True):
        if model.config.model_type not in READERS:
            raise MmspecError(
                f"{type(model).__name__} is no vision-language model that mmspec reads: use one of {', '.join(READERS)}"
            )
        super().__init__(model, weights_hash=weights_hash, check=check)

    def is_text(self, ids: Int[Tensor, "position"]) -> Bool[Tensor, "position"]:
        media = torch.tensor(list(self.media_ids.values()), dtype=ids.dtype, device=ids.device)
        return ~torch.isin(ids, media)

    @property
    def media_ids(self) -> dict[str, int]:
        """The ids of the tokens in whose place the vectors of pictures (`image`) and sounds (`audio`) come."""
        config = self.model.config
        found = {
            kind: next((value for name in names if (value := getattr(config, name, None)) is not None), None)
            for kind, names in MEDIA_IDS.items()
        }
        return {kind: value for kind, value in found.items() if value is not None}

    def prompt_inputs(self, prompts: Prompts) -> list[dict[str, Tensor]]:
        media = prompts.images if isinstance(prompts, VisualPrompts) else []
        inputs = [
            {
                key: value.to(self.device, self.dtype if value.is_floating_point() else None)
                for key, value in row.items()
            }
            for row in media or [{}] * len(prompts.conditional)
        ]
        for ids, row in zip(prompts.conditional, inputs, strict=True):
            if "pixel_values_videos" in row:
                raise MmspecError("videos are not supported: give images")
            given = any(value.is_floating_point() for value in row.values())
            for kind, media_id in self.media_ids.items():
                if not given and (count := ids.count(media_id)):
                    raise MmspecError(f"the prompt has {count} {kind} tokens and no {kind}: give its {kind}s too")
        return inputs
