"""LlamaGen (arXiv 2406.06525): a Llama over the codes of a square picture, after a class or a caption.

transformers has no such model. This one is its Llama with the positions of FoundationVision/LlamaGen
(autoregressive/models/gpt.py), and with what that makes of classes and captions.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from mmspec.engine.cache import RowCache, TreeCache, cache_kwarg
from mmspec.engine.state import PromptEmbeds
from mmspec.errors import MmspecError
from mmspec.targets.base import Grid, Prompts
from mmspec.targets.image import ImageTarget


class LlamaGenConfig(LlamaConfig):
    """A Llama's, with `side` codes to a row and column of the picture, and `scale` pixels to a code's side.

    `classes` is how many there are. Where it is 0 prompts are captions: at most `caption_length` vectors of
    `caption_width`.
    """

    model_type = "llamagen"

    def __init__(
        self,
        side: int = 16,
        scale: int = 16,
        classes: int = 0,
        caption_length: int = 120,
        caption_width: int = 2048,
        **kwargs: Any,
    ):
        self.side, self.scale, self.classes = side, scale, classes
        self.caption_length, self.caption_width = caption_length, caption_width
        super().__init__(**kwargs)


class RasterRotary(nn.Module):
    """Rotary positions of the code at `position_ids`, counted in raster order: the first half of the frequencies turns
    by its row, the second by its column. Negative positions are those of the prompt, whose queries and keys become 0.
    """

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self._tables: dict[torch.device, Tensor] = {}

    @torch.no_grad()
    def forward(
        self, x: Float[Tensor, "*shape"], position_ids: Int[Tensor, "sequence node"]
    ) -> tuple[Float[Tensor, "sequence node width"], Float[Tensor, "sequence node width"]]:
        if x.device not in self._tables:
            self._tables[x.device] = self._table().to(x.device)
        table = self._tables[x.device]
        cos, sin = table[:, (position_ids + 1).clamp(0, table.shape[1] - 1)].to(x.dtype)
        return cos, sin

    def _table(self) -> Float[Tensor, "2 place width"]:
        """Cosines and sines of all places, zeros before them."""
        config, half = self.config, self.config.head_dim // 2
        frequencies = config.rope_parameters["rope_theta"] ** (-torch.arange(0, half, 2).float() / half)
        angles = torch.arange(config.side).float()[:, None] * frequencies
        rows, columns = angles.repeat_interleave(config.side, 0), angles.repeat(config.side, 1)
        places = torch.cat([rows, columns, rows, columns], 1)
        return nn.functional.pad(torch.stack([places.cos(), places.sin()]), (0, 0, 1, 0))


class LlamaGenForImageGeneration(LlamaForCausalLM):
    """See this module. Prompts are vectors: `class_vectors` or `caption_vectors`."""

    config_class = LlamaGenConfig

    def __init__(self, config: LlamaGenConfig):
        super().__init__(config)
        self.model.rotary_emb = RasterRotary(config)
        width = config.hidden_size
        if config.classes:
            # The last is that of no class.
            self.class_embedding = nn.Embedding(config.classes + 1, width)
        else:
            first, last = nn.Linear(config.caption_width, width, bias=False), nn.Linear(width, width, bias=False)
            layers = OrderedDict(fc1=first, act=nn.GELU("tanh"), fc2=last)
            self.caption_projection = nn.Sequential(layers)
            self.no_caption = nn.Parameter(torch.zeros(config.caption_length, config.caption_width))

    def class_vectors(self, number: int | None) -> Float[Tensor, "1 width"]:
        """The prompt of a class, or of none."""
        number = self.config.classes if number is None else number
        return self.class_embedding(torch.tensor([number], device=self.device))

    def caption_vectors(self, caption: Float[Tensor, "position width"] | int) -> Float[Tensor, "position hidden"]:
        """The prompt of a caption, or of none in the place of one of so many vectors.

        The model was trained with captions padded on the left, which nothing but the padding itself attends to, and
        whose prompts have no positions: it is left out.
        """
        caption = self.no_caption[-caption:] if isinstance(caption, int) else caption
        return self.caption_projection(caption.to(self.device, self.dtype))


@dataclass(frozen=True, slots=True)
class CaptionPrompts(Prompts):
    """Captions: the vectors that a text encoder makes of each row's ids, `position width`."""

    captions: list[Tensor] = field(default_factory=list)

    def select(self, rows: slice, guidance: float) -> "CaptionPrompts":
        plain = Prompts.select(self, rows, guidance)
        return CaptionPrompts(plain.conditional, plain.unconditional, plain.guidance, captions=self.captions[rows])

    def repeat_first(self, rows: int) -> "CaptionPrompts":
        plain = Prompts.repeat_first(self, rows)
        return CaptionPrompts(plain.conditional, plain.unconditional, plain.guidance, captions=self.captions[:1] * rows)


class LlamaGenTarget(ImageTarget):
    """A `LlamaGenForImageGeneration` that draws square pictures.

    The ids of a row are a class, or what a caption's vectors were made of: they name what is not read as ids, and are
    negative tokens. An unconditional prompt has the ids of its row, and is read as no class or no caption.
    """

    families: ClassVar[tuple[str, ...]] = ("llamagen",)

    def __init__(self, model: PreTrainedModel, weights_hash: str = "", check: bool = True):
        if model.config.model_type not in self.families:
            raise MmspecError(f"{type(model).__name__} is no LlamaGen: give a LlamaGenForImageGeneration")
        config = model.config
        grid = Grid(config.side, config.side)
        super().__init__(model, range(config.vocab_size), grid, None, weights_hash, check)

    def tokens(self, ids: list[int]) -> list[int]:  # type: ignore[override]
        """Ids of prompts as tokens: all of them are negative, though codes may have the same numbers."""
        return [-1 - model_id for model_id in ids]

    def ids(self, tokens: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """The model's ids of codes. Prompts have none: the first code stands for theirs, where passes are measured."""
        return self.vocabulary[tokens.clamp(min=0)]

    def prompt_inputs(self, prompts: Prompts) -> list[dict[str, Tensor]]:
        """The vectors of each sequence."""
        model, rows, vectors = self.model, len(prompts.conditional), []
        captions = prompts.captions if isinstance(prompts, CaptionPrompts) else []
        for i, ids in enumerate(prompts.branches):
            if model.config.classes:
                if len(ids) != 1 or not 0 <= ids[0] < model.config.classes:
                    raise MmspecError(f"a prompt is {ids}: give one class, from 0 to {model.config.classes - 1}")
                vectors.append(model.class_vectors(None if i >= rows else ids[0]))
            elif len(captions) != rows or len(ids) > model.config.caption_length:
                most = model.config.caption_length
                raise MmspecError(f"this LlamaGen draws captions of at most {most} vectors: give CaptionPrompts")
            else:
                vectors.append(model.caption_vectors(len(ids) if i >= rows else captions[i]))
        return [{"vectors": prompt} for prompt in vectors]

    def read_prompt(
        self, cache: RowCache, sequence: int, prompt: list[int], inputs: dict[str, Tensor]
    ) -> tuple[PromptEmbeds, Float[Tensor, "position width"]]:
        assert isinstance(cache, TreeCache)
        ids, vectors = torch.tensor(prompt, device=self.device), inputs["vectors"]
        # Codes are counted from 0.
        positions = torch.arange(-len(vectors), 0, device=self.device)
        cache.open_row(sequence, len(vectors))
        options = cache_kwarg(self.decoder, cache) | {"use_cache": True}
        hidden = self.decoder(inputs_embeds=vectors[None], position_ids=positions[None], **options)[0][0]
        is_text = torch.ones_like(positions, dtype=torch.bool)
        return PromptEmbeds(ids, vectors, positions, is_text, -len(vectors)), hidden

    def why_not_comparable(self, guidance: float, penalty: float) -> str:
        """transformers has none to compare with."""
        return "LlamaGen, which transformers does not have"
