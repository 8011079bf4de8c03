"""Models with linear attention, state-space or convolution layers as targets.

Their states cannot be cut back, so drafts are chains, read into copies of the model's own cache (`engine.replay`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from inspect import signature
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache

from mmspec.engine.cache import RowCache, cache_kwarg, causal
from mmspec.engine.replay import Nodes, ReplayCache
from mmspec.errors import MmspecError
from mmspec.targets.causal import CausalTarget
from mmspec.targets.masks import as_attention_takes
from mmspec.targets.probe import ATTENTION, PROMPT, RECURRENT, share_of_spread
from mmspec.targets.registry import READERS
from mmspec.targets.vision_language import VisionLanguageTarget

# What the probe reads after its prompt: accepted and rejected nodes of each chain. Accepted ones are read again with
# the next chain, in a pass of their own, or not at all.
CHAINS = ((2, 3), (9, 2), (3, 0), (1, 2), (2, 0), (1, 0))


class RecurrentTarget(CausalTarget):
    """A causal language model with recurrent layers, such as Mamba 2, Falcon-H1, Qwen3-Next or LFM2.

    Every row is read alone, with the model's own masks; passes are not padded. Drafts are chains. On construction,
    chains after a prompt, some of them partly rejected, are compared with the model's own `forward`.
    """

    layer_kinds: ClassVar[frozenset[str]] = ATTENTION | RECURRENT | {"mlp", "moe", "indexed_attention"}
    unlike: ClassVar[str] = "for several tokens after others: they differ by {error:.1e} of their spread"

    @property
    def chains_only(self) -> bool:
        return True

    @property
    def deterministic(self) -> bool:
        """Always False: a state that was read token by token and one read by chains differ in their last bits."""
        return False

    @deterministic.setter
    def deterministic(self, value: bool) -> None:
        if value:
            raise MmspecError(
                f"{type(self.model).__name__} has recurrent layers, whose last bits depend on how many tokens are read "
                "at once: leave deterministic out"
            )

    def new_cache(self, length: int, inputs: Sequence[dict[str, Tensor]] = ({},)) -> ReplayCache:
        return ReplayCache(len(inputs), length, self.device)

    def forward_prompt(self, cache: RowCache, sequence: int, ids: Int[Tensor, "1 position"], options: dict) -> None:
        assert isinstance(cache, ReplayCache)
        output = self.model(input_ids=ids, use_cache=True, **options)
        own = getattr(output, "cache", None) or getattr(output, "past_key_values", None)
        if not isinstance(own, Cache):
            raise MmspecError(
                f"{type(self.model).__name__} gives no cache of transformers: use a model whose states are in one"
            )
        cache.open_row(sequence, own)

    def run(
        self,
        cache: RowCache,
        ids: Int[Tensor, "sequence node"],
        ancestors: Bool[Tensor, "sequence node node"],
        depths: Int[Tensor, "sequence node"],
        position_ids: Int[Tensor, "*axis sequence node"],
        numbers: Sequence[int] = (),
    ) -> tuple[Float[Tensor, "sequence node width"], Float[Tensor, "sequence node wide"]]:
        """Run the decoder on new chains, row by row; see `CausalTarget.run`.

        What pads a row's chain comes after it, so that nothing sees it.
        """
        assert isinstance(cache, ReplayCache)

        def read(own: Cache, nodes: Nodes) -> Float[Tensor, "1 node both"]:
            with self.layer_inputs(numbers) as entered:
                last = self._read(own, nodes)
            return torch.cat([last, entered.or_last(last)], -1)

        chains = [Nodes(ids[row : row + 1], position_ids[..., row : row + 1, :]) for row in range(len(cache.rows))]
        both = torch.cat([row.verify(chain, read) for row, chain in zip(cache.rows, chains, strict=True)])
        return both[..., : self.hidden_size], both[..., self.hidden_size :]

    def _read(self, cache: Cache, nodes: Nodes) -> Float[Tensor, "1 node width"]:
        """Hidden states of nodes after what a cache holds, which then holds these too."""
        options = self.decoder_inputs(nodes.ids) | self.mask(cache, len(nodes)) | cache_kwarg(self.decoder, cache)
        if "position_ids" in signature(self.decoder.forward).parameters:
            options["position_ids"] = nodes.position_ids
        with chunks_of(len(nodes), self._scans):
            return self.decoder(use_cache=True, **options).last_hidden_state

    @cached_property
    def _scans(self) -> dict[nn.Module, int]:
        """State-space layers without kernels of their own, and the length of the chunks that they scan."""
        layers = self.decoder.modules() if self.device.type == "cpu" else ()
        return {layer: layer.chunk_size for layer in layers if isinstance(getattr(layer, "chunk_size", None), int)}

    def mask(self, cache: Cache, nodes: int) -> dict[str, Tensor]:
        """A mask for nodes after what a cache holds; none where the model makes its own."""
        return {}

    @property
    def tolerance(self) -> float:
        """At least 1e-4: states are float32 in models of any precision."""
        return max(super().tolerance, 1e-4)

    def largest_error(self, slots: int) -> float:
        """The largest error of the logits of a prompt and of chains after it, as a share of their spread."""
        sequence = self.sample_nodes(PROMPT + sum(accepted for accepted, _ in CHAINS), PROMPT)
        cache, place = self.new_cache(slots), PROMPT
        _, hidden = self.read_prompt(cache, 0, sequence[:PROMPT], {})
        cache.advance([PROMPT - 1])
        cache.commit([[0]])
        parts = [hidden]
        for accepted, rejected in CHAINS:
            chain = sequence[place : place + accepted] + sequence[:rejected]
            ids = torch.tensor([chain], device=self.device)
            depths = torch.arange(len(chain), device=self.device)[None]
            read, _ = self.run(cache, ids, causal(1, len(chain), self.device), depths, place + depths)
            parts.append(read[0, :accepted])
            cache.commit([list(range(accepted))])
            place += accepted
        whole = torch.tensor([sequence], device=self.device)
        expected = self.own_logits(whole, torch.ones_like(whole))[0]
        return share_of_spread(self.logits(torch.cat(parts)), expected)


class MiniMaxTarget(RecurrentTarget):
    """MiniMax-01.

    It takes the first layer's length for the cache's, which is 0 where that layer is linear: its own mask would fit
    single tokens alone.
    """

    def mask(self, cache: Cache, nodes: int) -> dict[str, Tensor]:
        length = max(layer.get_seq_length() for layer in cache.layers)
        mask = torch.ones(1, 1, nodes, length + nodes, dtype=torch.bool, device=self.device).tril(length)
        return {"attention_mask": as_attention_takes(self.decoder, mask)}


@contextmanager
def chunks_of(length: int, scans: dict[nn.Module, int]) -> Iterator[None]:
    """Let layers scan chunks that are no longer than a pass.

    They pad it to whole chunks, of 256 nodes as a rule: a pass of 5 nodes over 6 layers of Falcon-H1 (width 1,024)
    takes 585 ms on one thread of a CPU, and 180 ms so.
    """
    try:
        for layer, chunk in scans.items():
            vars(layer)["chunk_size"] = min(chunk, length)
        yield
    finally:
        for layer, chunk in scans.items():
            vars(layer)["chunk_size"] = chunk


class RecurrentReader(RecurrentTarget, VisionLanguageTarget):
    """A model with recurrent layers that reads pictures into its prompt, such as Qwen3.5 or LFM2-VL."""

    families = READERS
