"""The talker of Qwen2.5-Omni (Xu et al. 2025, arXiv 2503.20215): codes, each read with a part of the answer."""

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, SuppressTokensLogitsProcessor

from mmspec.engine.cache import RowCache, TreeCache, cache_kwarg
from mmspec.engine.state import PromptEmbeds
from mmspec.errors import MmspecError
from mmspec.targets.base import Prompts
from mmspec.targets.causal import CausalTarget
from mmspec.targets.head import OutputHead
from mmspec.targets.vision_language import VisualPrompts

# Parts of an answer that the probe reads.
PROBE_PARTS = 20


class ReplyTreeCache(TreeCache):
    """A tree cache whose rows keep what the thinker answered: `reply` has vectors that are read with one code each, the
    last with all codes that follow. The first is at `starts`, the length of the row's prompt.
    """

    reply: Float[Tensor, "row part width"]
    starts: Int[Tensor, "row"]

    def keep(self, rows: list[int]) -> None:
        super().keep(rows)
        self.reply, self.starts = self.reply[rows], self.starts[rows]

    def join(self, other: TreeCache) -> None:
        super().join(other)
        other = cast(ReplyTreeCache, other)
        parts = (self.reply, other.reply)
        self.reply = torch.cat([extended(part, max(map(_parts, parts))) for part in parts])
        self.starts = torch.cat([self.starts, other.starts])


def _parts(reply: Float[Tensor, "row part width"]) -> int:
    return reply.shape[1]


def extended(reply: Float[Tensor, "row part width"], parts: int) -> Float[Tensor, "row more_part width"]:
    """A reply with its last part as often as it takes to have so many."""
    return torch.cat([reply, reply[:, -1:].expand(-1, parts - reply.shape[1], -1)], 1)


class TalkerTarget(CausalTarget):
    """A `Qwen2_5OmniTalkerForConditionalGeneration`: what `generate` of the whole model asks for codes.

    Prompts are its codes (mask, pad and begin), and in `VisualPrompts.images` what its `generate` is given for each
    row: `inputs_embeds`, `thinker_reply_part`, `input_text_ids` and sizes of pictures and sounds. A code that is said
    is read as its vector plus the next part of the thinker's reply: node vectors depend on the place.

    An `attention_mask` without entries stands for none. Then the model's forward leaves out the vectors by which speech
    begins, and transformers 5.24 gives none to rows without padding: its `generate` drops masks of ones.
    """

    families: ClassVar[tuple[str, ...]] = ("qwen2_5_omni_talker",)

    def find_decoder(self) -> PreTrainedModel:
        return self.model.model

    def head_rows(self) -> int:
        return len(self.model.codec_head.weight)

    def build_head(self, ids: Sequence[int]) -> OutputHead:
        return OutputHead(self.model.codec_head.weight)

    def prompt_inputs(self, prompts: Prompts) -> list[dict[str, Tensor]]:
        rows = prompts.images if isinstance(prompts, VisualPrompts) else []
        if len(rows) != len(prompts.branches) or not all("thinker_reply_part" in row for row in rows):
            raise MmspecError(
                "the talker reads what the thinker answered: give inputs_embeds, thinker_reply_part and input_text_ids "
                "of each row in VisualPrompts.images, or use generate of the whole model with talker_custom_generate="
            )
        return [
            {
                name: value.to(self.device, self.dtype if value.is_floating_point() else None, copy=True)
                for name, value in row.items()
            }
            for row in rows
        ]

    def tree_cache(
        self, slots: int, inputs: Sequence[dict[str, Tensor]] = ({},), min_visible: int = 0
    ) -> ReplyTreeCache:
        cache = ReplyTreeCache(self.decoder.config.num_hidden_layers, len(inputs), slots, self.device, min_visible)
        replies = [row.get("thinker_reply_part", self._sample()) for row in inputs]
        longest = max(map(_parts, replies))
        cache.reply = torch.cat([extended(reply, longest) for reply in replies])
        cache.starts = torch.zeros(len(inputs), dtype=torch.long, device=self.device)
        return cache

    def _sample(self) -> Float[Tensor, "1 part width"]:
        """A random reply, to try the model with."""
        width = self.model.get_input_embeddings().weight.shape[1]
        sample = torch.randn(1, PROBE_PARTS, width, generator=torch.Generator().manual_seed(0))
        return sample.to(self.device, self.dtype)

    def read_prompt(
        self, cache: RowCache, sequence: int, prompt: list[int], inputs: dict[str, Tensor]
    ) -> tuple[PromptEmbeds, Float[Tensor, "position width"]]:
        cast(ReplyTreeCache, cache).starts[sequence] = len(prompt)
        return super().read_prompt(cache, sequence, prompt, inputs)

    def forward_prompt(self, cache: RowCache, sequence: int, ids: Int[Tensor, "1 position"], options: dict) -> None:
        mask = options.pop("attention_mask")
        super().forward_prompt(cache, sequence, ids, options | ({"attention_mask": mask} if mask.numel() else {}))

    def pass_inputs(
        self, cache: TreeCache, nodes: Int[Tensor, "sequence node"], depths: Int[Tensor, "sequence node"]
    ) -> dict:
        cache = cast(ReplyTreeCache, cache)
        places = (cache.lengths - cache.starts)[:, None] + depths
        return {"inputs_embeds": self._vectors(nodes, places, cache.reply)} | cache_kwarg(self.decoder, cache)

    def _vectors(
        self, codes: Int[Tensor, "row node"], places: Int[Tensor, "row node"], reply: Float[Tensor, "row part width"]
    ) -> Float[Tensor, "row node decoder_width"]:
        """What the decoder reads of codes at their places among those that are said."""
        index = places.clamp(0, reply.shape[1] - 1)[..., None].expand(-1, -1, reply.shape[2])
        return self.model.thinker_to_talker_proj(self.model.get_input_embeddings()(codes) + reply.gather(1, index))

    def own_logits(
        self, nodes: Int[Tensor, "row node"], mask: Int[Tensor, "row node"]
    ) -> Float[Tensor, "row node vocab"]:
        reply = extended(self._sample(), max(nodes.shape[1], PROBE_PARTS))[:, : nodes.shape[1]]
        vectors = self.model.get_input_embeddings()(nodes) + reply
        return self.model(inputs_embeds=vectors, use_cache=False).logits

    def generate_processor(self, start: int) -> LogitsProcessor:
        return SuppressTokensLogitsProcessor([], device=str(self.device))
