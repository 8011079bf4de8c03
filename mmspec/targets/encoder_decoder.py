"""Encoder-decoder models of transformers as targets: the encoder reads once, and the decoder is what is verified."""

from collections.abc import Sequence
from inspect import signature
from typing import ClassVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from mmspec.engine.cache import RowCache, TreeCache, cache_kwarg
from mmspec.engine.state import PromptEmbeds
from mmspec.errors import MmspecError
from mmspec.targets.base import Prompts
from mmspec.targets.causal import CausalTarget
from mmspec.targets.masks import as_attention_takes
from mmspec.targets.registry import TRANSCRIBERS
from mmspec.targets.vision_language import VisualPrompts

# Positions of the random encoding that the probe reads.
PROBE_LENGTH = 8


class CrossTreeCache(TreeCache):
    """A tree cache, and beside it what the decoder's cross-attention reads: the keys and values of each row's encoding.

    `cross` holds them from the first slot on, `cross.lengths` of each row. `width` is that of the encoder's vectors.
    """

    def __init__(
        self, layers: int, rows: int, capacity: int, device: torch.device, min_visible: int, encoded: int, width: int
    ):
        super().__init__(layers, rows, capacity, device, min_visible)
        self.cross, self.width = TreeCache(layers, rows, encoded, device), width

    @property
    def bytes(self) -> int:
        return super().bytes + self.cross.bytes

    def keep(self, rows: list[int]) -> None:
        super().keep(rows)
        self.cross.keep(rows)

    def join(self, other: TreeCache) -> None:
        super().join(other)
        self.cross.join(cast(CrossTreeCache, other).cross)

    def whole(self, encoded: bool) -> EncoderDecoderCache:
        """Both caches as decoders take them; `encoded` says that the cross-attention's entries are there."""
        both = EncoderDecoderCache(self, self.cross)
        both.is_updated = dict.fromkeys(range(len(self.layers)), encoded)
        return both


class EncoderDecoderTarget(CausalTarget):
    """An encoder-decoder model of transformers that hears or reads something and answers with text, such as Whisper.

    A prompt is what the decoder begins with: a start token and, for Whisper, language, task and the like. What the
    encoder reads comes with it in `VisualPrompts.images`, one dictionary a row: the arguments of the model's encoder
    (`input_features`, ...), or `encoder_hidden_states`, what it has made of them (`position width`). Each row is
    encoded alone, so that a batch gives what singles give.
    """

    families: ClassVar[tuple[str, ...]] = TRANSCRIBERS

    @property
    def max_positions(self) -> int:
        return getattr(self.model.config, "max_target_positions", None) or super().max_positions

    def prompt_inputs(self, prompts: Prompts) -> list[dict[str, Tensor]]:
        rows = prompts.images if isinstance(prompts, VisualPrompts) else []
        if len(rows) != len(prompts.branches):
            raise MmspecError(
                f"{type(self.model).__name__} is given {len(prompts.branches)} prompts and {len(rows)} things to read: "
                "give one each, in VisualPrompts.images"
            )
        return [{"encoder_hidden_states": self._encoded(row)} for row in rows]

    def _encoded(self, inputs: dict[str, Tensor]) -> Float[Tensor, "position width"]:
        """What the encoder makes of one row."""
        if "encoder_hidden_states" in inputs:
            return inputs["encoder_hidden_states"].to(self.device, self.dtype)
        encoder = self.model.get_encoder()
        given = {
            name: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
            if name in signature(encoder.forward).parameters
        }
        output = encoder(**given)
        mask = getattr(output, "attention_mask", None)
        hidden = output.last_hidden_state[0]
        return hidden if mask is None else hidden[mask[0].bool()]

    def tree_cache(
        self, slots: int, inputs: Sequence[dict[str, Tensor]] = ({},), min_visible: int = 0
    ) -> CrossTreeCache:
        hidden = [row.get("encoder_hidden_states", self._sample()) for row in inputs]
        longest, width = max(map(len, hidden)), hidden[0].shape[1]
        layers = len(cast(torch.nn.ModuleList, self.decoder.layers))
        cache = CrossTreeCache(layers, len(inputs), slots, self.device, min_visible, longest, width)
        if "encoder_hidden_states" not in inputs[0]:
            self._read(cache, 0, torch.zeros(1, dtype=torch.long, device=self.device), hidden[0])
        return cache

    def _sample(self) -> Float[Tensor, "position width"]:
        """A random encoding, to try the decoder with."""
        config = getattr(self.model.config, "encoder", None) or getattr(self.model.config, "encoder_config", None)
        width = (config or self.model.config).hidden_size
        sample = torch.randn(PROBE_LENGTH, width, generator=torch.Generator().manual_seed(0))
        return sample.to(self.device, self.dtype)

    def _read(
        self,
        cache: CrossTreeCache,
        sequence: int,
        ids: Int[Tensor, "position"],
        hidden: Float[Tensor, "encoded encoder_width"],
    ) -> Float[Tensor, "position width"]:
        """Let the decoder read ids, and the encoding, into the first slots of a sequence; its last hidden states."""
        cache.open_row(sequence, len(ids))
        cache.cross.open_row(sequence, len(hidden))
        output = self.decoder(
            input_ids=ids[None],
            encoder_hidden_states=hidden[None],
            use_cache=True,
            **cache_kwarg(self.decoder, cache.whole(False)),
        )
        cache.cross.advance([len(hidden) * (row == sequence) for row in range(cache.size)])
        return output.last_hidden_state[0]

    def read_prompt(
        self, cache: RowCache, sequence: int, prompt: list[int], inputs: dict[str, Tensor]
    ) -> tuple[PromptEmbeds, Float[Tensor, "position width"]]:
        ids = torch.tensor(prompt, device=self.device)
        hidden = self._read(cast(CrossTreeCache, cache), sequence, ids, inputs["encoder_hidden_states"])
        positions = torch.arange(len(ids), device=self.device)
        vectors = self.model.get_input_embeddings()(ids)
        return PromptEmbeds(ids, vectors, positions, self.is_text(ids)), hidden

    def pass_inputs(
        self, cache: TreeCache, nodes: Int[Tensor, "sequence node"], depths: Int[Tensor, "sequence node"]
    ) -> dict:
        """Beside the nodes: both caches, vectors that stand for the encodings, and which of these there are."""
        cache = cast(CrossTreeCache, cache)
        longest = cache.cross.capacity
        given = self.decoder_inputs(nodes) | cache_kwarg(self.decoder, cache.whole(True))
        none = torch.zeros(1, 1, 1, device=self.device, dtype=self.dtype)
        given["encoder_hidden_states"] = none.expand(cache.size, longest, cache.width)
        if cache.cross.shortest < longest:
            seen = torch.arange(longest, device=self.device) < cache.cross.lengths[:, None]
            given["encoder_attention_mask"] = as_attention_takes(self.decoder, seen[:, None, None])
        return given

    def own_logits(
        self, nodes: Int[Tensor, "row node"], mask: Int[Tensor, "row node"]
    ) -> Float[Tensor, "row node vocab"]:
        read = BaseModelOutput(self._sample().expand(len(nodes), -1, -1))
        read.attention_mask = None  # which Moonshine asks for
        return self.model(encoder_outputs=read, decoder_input_ids=nodes, use_cache=False).logits[..., self.vocabulary]


def encoded_rows(encoded: ModelOutput, attention_mask: object) -> list[dict[str, Tensor]]:
    """What an encoder has made of each row, without its padding."""
    hidden = encoded["last_hidden_state"]
    mask = getattr(encoded, "attention_mask", None)
    if mask is None and isinstance(attention_mask, Tensor) and attention_mask.shape == hidden.shape[:2]:
        mask = attention_mask
    return [
        {"encoder_hidden_states": row if mask is None else row[mask[number].bool()]}
        for number, row in enumerate(hidden)
    ]
