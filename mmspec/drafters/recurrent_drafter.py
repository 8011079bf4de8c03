"""What drafters share that carry a hidden state from token to token."""

from abc import abstractmethod
from time import perf_counter

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache

from mmspec.drafters.tree_drafter import TreeDrafter
from mmspec.engine.accept import Committed
from mmspec.engine.cache import TreeCache, causal
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.tree import DraftTree, root
from mmspec.targets.base import Target


class RecurrentDrafter(TreeDrafter):
    """Position t reads token t + 1 and the target's features at t, or its own hidden state, and predicts token t + 2.

    A subclass says what the first layer reads (`fuse`), what its layers make of it (`layer`), which logits a hidden
    state has (`drafted_logits`), how many layers keep keys and values (`cached_layers`), and which axes positions have
    (`axes`, (3,) for M-RoPE: a prompt is then read at the target's positions).
    """

    cached_layers = 1
    axes: tuple[int, ...] = ()

    @abstractmethod
    def fuse(
        self,
        vectors: Float[Tensor, "*shape width"],
        features: Float[Tensor, "*shape width"],
        is_text: Bool[Tensor, "*shape"] | None = None,
    ) -> Float[Tensor, "*shape entry"]:
        """What the first layer reads, of the input vectors of tokens and the hidden states before them."""

    @abstractmethod
    def layer(
        self,
        inputs: Float[Tensor, "row node entry"],
        mask: Bool[Tensor, "row 1 node slot"],
        position_ids: Int[Tensor, "*axis row node"],
        cache: Cache,
    ) -> Float[Tensor, "row node width"]:
        """Hidden states, by all layers."""

    @abstractmethod
    def drafted_logits(self, hidden: Float[Tensor, "row node width"]) -> Float[Tensor, "row node drafted"]:
        """Logits of hidden states over the drafting vocabulary, after `start`."""

    def fuse_level(
        self, vectors: Float[Tensor, "row beam width"], hidden: Float[Tensor, "row beam hidden"]
    ) -> Float[Tensor, "row beam entry"]:
        """What the first layer reads of a level of the tree."""
        return self.fuse(vectors, hidden)

    def project(self, features: Float[Tensor, "*shape wide"]) -> Float[Tensor, "*shape width"]:
        """The target's features as hidden states of this drafter."""
        return features

    def prompt_inputs(
        self, state: State, row: int
    ) -> tuple[Float[Tensor, "read entry"], Int[Tensor, "*axis read"], int]:
        """What is read of a row's prompt, and where; and by how much later positions exceed the number of entries."""
        prompt, features = state.prompt_hidden[row]
        tokens = torch.tensor(state.prompt_ids[row][-len(prompt.is_text) :], device=self.target.device)
        inputs = self.fuse(self.read_prompt(prompt, tokens)[1:], self.project(features), prompt.is_text[1:])
        if self.axes:
            return inputs, prompt.position_ids[..., :-1].expand(*self.axes, -1), prompt.position_shift
        return inputs, torch.arange(len(inputs), device=inputs.device), 0

    def start(self, target: Target, state: State, sampling: SamplingOptions, needs_draft_probs: bool) -> None:
        # Nothing is read yet.
        self._cache = TreeCache(self.cached_layers, 0, 0, target.device)
        self._shift = torch.zeros(0, 1, dtype=torch.long, device=target.device)
        self._last: Tensor | None = None
        super().start(target, state, sampling, needs_draft_probs)

    @torch.inference_mode()
    def _read_rows(self, state: State, rows: list[int]) -> None:
        device = self.target.device
        cache = TreeCache(self.cached_layers, len(rows), state.cache.capacity + self.beam * self.depth, device)
        parts, position_ids, shifts = [], [], []
        for row in rows:
            read, positions, shift = self.prompt_inputs(state, row)
            new = self._committed(state, row, state.counts[row])
            after = (len(read) + shift + torch.arange(len(new), device=device)).expand(*self.axes, -1)
            parts.append(torch.cat([read, new]))
            position_ids.append(torch.cat([positions, after], -1).movedim(-1, 0))
            shifts.append(shift)
        padded = pad_sequence(position_ids, batch_first=True)
        last = self._extend(cache, parts, padded.movedim(-1, 0) if self.axes else padded)
        new_shift = torch.tensor(shifts, device=device)[:, None]
        if self._last is None:
            self._cache, self._last, self._shift = cache, last, new_shift
        else:
            self._cache.join(cache)
            self._last, self._shift = torch.cat([self._last, last]), torch.cat([self._shift, new_shift])

    def _keep_rows(self, rows: list[int]) -> None:
        assert self._last is not None
        self._cache.keep(rows)
        self._last, self._shift = self._last[rows], self._shift[rows]

    @torch.inference_mode()
    def _extend(
        self,
        cache: TreeCache,
        parts: list[Float[Tensor, "_ entry"]],
        position_ids: Int[Tensor, "*axis row node"],
        last: Float[Tensor, "row width"] | None = None,
    ) -> Float[Tensor, "row width"]:
        """Read committed positions of each row; the last hidden states, those of before for a row without new ones."""
        inputs = pad_sequence(parts, batch_first=True)
        rows, width = inputs.shape[:2]
        cache.open(width)
        output = self.layer(inputs, cache.mask(causal(rows, width, inputs.device)), position_ids, cache)
        counts = [len(part) for part in parts]
        cache.advance(counts)
        index = torch.tensor(counts, device=inputs.device)
        newest = output[torch.arange(rows, device=inputs.device), (index - 1).clamp(min=0)]
        return torch.where(index[:, None] > 0, newest, torch.zeros_like(newest) if last is None else last)

    def _positions(self, depths: Int[Tensor, "row node"]) -> Int[Tensor, "*axis row node"]:
        """The positions of entries, by how many come after the committed ones before them."""
        positions = self._cache.lengths[:, None] + self._shift + depths
        return positions.expand(*self.axes, *positions.shape)

    def observe(self, state: State, tree: DraftTree, committed: Committed, gumbel_scores: Tensor) -> None:
        self._plan.observe(committed, tree.height)
        counts = [len(tokens) for tokens in committed.tokens]
        if max(counts):
            parts = [self._committed(state, row, count) for row, count in enumerate(counts)]
            after = torch.arange(max(counts), device=state.roots.device).expand(state.rows, -1)
            self._last = self._extend(self._cache, parts, self._positions(after), self._last)

    def _committed(self, state: State, row: int, new: int) -> Float[Tensor, "position entry"]:
        """What the layer reads of the last `new` tokens of a row."""
        count = state.counts[row]
        tokens = torch.tensor(state.tokens[row][count - new :], dtype=torch.long, device=state.roots.device)
        return self.fuse(self.embed(self.target, tokens), self.project(state.features[0, row, count - new : count]))

    @torch.inference_mode()
    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        height = self._plan.height(limit, self.cost)
        if height < 1:
            return root(state.roots)
        began = perf_counter()
        assert self._last is not None
        rows, hidden = torch.arange(state.rows, device=state.roots.device)[:, None], self._last[:, None]
        ancestors = torch.zeros(state.rows, 1, 0, dtype=torch.bool, device=state.roots.device)

        def scores(depth: int, tokens: Tensor, parent_index: Tensor) -> Float[Tensor, "row beam drafted"]:
            nonlocal hidden, ancestors
            if depth:
                inputs = self.fuse_level(self.embed(self.target, tokens), hidden[rows, parent_index])
                own = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device).expand(state.rows, -1, -1)
                ancestors = torch.cat([ancestors[rows, parent_index], own], 2)
                hidden = self._predict_level(inputs, ancestors, depth)
            return self.sampling.scores(self.drafted_logits(hidden))

        tree = self.grow(state, noise, height, scores)
        if not self.needs_draft_probs:
            self._plan.took(perf_counter() - began, height)
        return tree

    def _predict_level(
        self,
        inputs: Float[Tensor, "row beam width"],
        ancestors: Bool[Tensor, "row beam entry"],
        depth: int,
    ) -> Float[Tensor, "row beam hidden"]:
        """One level of the tree: every node sees what is committed, its own ancestors and itself."""
        cache, width = self._cache, inputs.shape[1]
        cache.open(width, ancestors.shape[2] - width)
        depths = torch.full((len(inputs), width), depth - 1, device=inputs.device)
        return self.layer(inputs, cache.mask(ancestors), self._positions(depths), cache)
