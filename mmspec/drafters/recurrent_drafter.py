"""What drafters share that carry a hidden state from token to token."""

from abc import abstractmethod
from collections.abc import Iterable
from time import perf_counter

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache

from mmspec.drafters.tree_drafter import TreeDrafter
from mmspec.engine.accept import Committed
from mmspec.engine.cache import TreeCache, causal
from mmspec.engine.compiled import SEQUENCES, GraphLayer, Graphs, Written, graph_slots
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.tree import DraftTree, root
from mmspec.targets.base import Target


class RecurrentDrafter(TreeDrafter):
    """Position t reads token t + 1 and the target's features at t, or its own hidden state, and predicts token t + 2.

    With guidance every CFG branch has its own prompt, hidden states, keys and values; all branches read the same draft,
    and the target mixes their logits. Sequences are ordered row by row here.

    A subclass says what the first layer reads (`fuse`), what its layers make of it (`layer`), which logits a hidden
    state has (`drafted_logits`), how many layers keep keys and values (`cached_layers`), and which axes positions have
    (`axes`, (3,) for M-RoPE: a prompt is then read at the target's positions). Of a prompt it may read more entries
    than the target does, by `longer` at most.
    """

    guided = True
    cached_layers = 1
    axes: tuple[int, ...] = ()
    longer = 0
    _graphs: Graphs | None = None

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
        inputs: Float[Tensor, "sequence node entry"],
        mask: Bool[Tensor, "sequence 1 node slot"],
        position_ids: Int[Tensor, "*axis sequence node"],
        cache: Cache,
    ) -> Float[Tensor, "sequence node width"]:
        """Hidden states, by all layers."""

    @abstractmethod
    def drafted_logits(self, hidden: Float[Tensor, "sequence node width"]) -> Float[Tensor, "sequence node drafted"]:
        """Logits of hidden states over the drafting vocabulary, after `start`."""

    def fuse_level(
        self, vectors: Float[Tensor, "sequence beam width"], hidden: Float[Tensor, "sequence beam hidden"]
    ) -> Float[Tensor, "sequence beam entry"]:
        """What the first layer reads of a level of the tree."""
        return self.fuse(vectors, hidden)

    def project(self, features: Float[Tensor, "*shape wide"]) -> Float[Tensor, "*shape width"]:
        """The target's features as hidden states of this drafter."""
        return features

    def prompt_inputs(
        self, state: State, sequence: int
    ) -> tuple[Float[Tensor, "read entry"], Int[Tensor, "*axis read"], int]:
        """What is read of the prompt of one of the state's sequences, and where; and by how much later positions exceed
        the number of entries.
        """
        prompt, features = state.prompt_hidden[sequence]
        inputs = self.fuse(self.read_prompt(prompt)[1:], self.project(features), prompt.is_text[1:])
        if self.axes:
            return inputs, prompt.position_ids[..., :-1].expand(*self.axes, -1), prompt.position_shift
        return inputs, torch.arange(len(inputs), device=inputs.device), 0

    def sequences(self, state: State, rows: Iterable[int] | None = None) -> list[int]:
        """The state's sequences of some rows, or of all, in the order in which they are kept here."""
        rows = range(state.rows) if rows is None else rows
        return [branch * state.rows + row for row in rows for branch in range(state.branches)]

    def in_branches(self, per_row: Tensor) -> Tensor:
        """What is the same for all sequences of a row."""
        return per_row if self._branches == 1 else per_row.repeat_interleave(self._branches, 0)

    def start(self, target: Target, state: State, sampling: SamplingOptions, needs_draft_probs: bool) -> None:
        # Nothing is read yet.
        self._branches = state.branches
        self._cache = TreeCache(self.cached_layers, 0, 0, target.device)
        self._shift = torch.zeros(0, 1, dtype=torch.long, device=target.device)
        self._last: Tensor | None = None
        if not target.compiled:
            self._graphs = None
        elif self._graphs is None:
            self._graphs = Graphs(f"drafter {self.name!r}", target.tolerance)
        super().start(target, state, sampling, needs_draft_probs)

    @torch.inference_mode()
    def _read_rows(self, state: State, rows: list[int]) -> None:
        device, sequences = self.target.device, self.sequences(state, rows)
        slots = state.cache.capacity + self.longer + max(self.beam, self.paths) * self.depth
        slots = graph_slots(slots) if self.target.compiled else slots
        cache = TreeCache(self.cached_layers, len(sequences), slots, device)
        parts, position_ids, shifts = [], [], []
        for sequence in sequences:
            read, positions, shift = self.prompt_inputs(state, sequence)
            new = self._committed(state, sequence, state.counts[sequence % state.rows])
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
        kept = [row * self._branches + branch for row in rows for branch in range(self._branches)]
        self._cache.keep(kept)
        self._last, self._shift = self._last[kept], self._shift[kept]

    @torch.inference_mode()
    def _extend(
        self,
        cache: TreeCache,
        parts: list[Float[Tensor, "_ entry"]],
        position_ids: Int[Tensor, "*axis sequence node"],
        last: Float[Tensor, "sequence width"] | None = None,
    ) -> Float[Tensor, "sequence width"]:
        """Read committed positions of each sequence; the last hidden states, those of before where there are no new
        ones.
        """
        inputs = pad_sequence(parts, batch_first=True)
        size, width = inputs.shape[:2]
        cache.open(width)
        output = self.layer(inputs, cache.mask(causal(size, width, inputs.device)), position_ids, cache)
        counts = [len(part) for part in parts]
        cache.advance(counts)
        index = torch.tensor(counts, device=inputs.device)
        newest = output[torch.arange(size, device=inputs.device), (index - 1).clamp(min=0)]
        return torch.where(index[:, None] > 0, newest, torch.zeros_like(newest) if last is None else last)

    def _positions(self, depths: Int[Tensor, "sequence node"] | int) -> Int[Tensor, "*axis sequence node"]:
        """The positions of entries, by how many come after the committed ones before them."""
        positions = self._cache.lengths[:, None] + self._shift + depths
        return positions.expand(*self.axes, *positions.shape)

    def observe(self, state: State, tree: DraftTree, committed: Committed, gumbel_scores: Tensor) -> None:
        self._plan.observe(committed, tree.height)
        counts = [len(tokens) for tokens in committed.tokens]
        if max(counts):
            sequences = self.sequences(state)
            parts = [self._committed(state, sequence, counts[sequence % state.rows]) for sequence in sequences]
            after = torch.arange(max(counts), device=state.roots.device).expand(len(parts), -1)
            self._last = self._extend(self._cache, parts, self._positions(after), self._last)

    def _committed(self, state: State, sequence: int, new: int) -> Float[Tensor, "position entry"]:
        """What the layer reads of the last `new` tokens of one of the state's sequences."""
        branch, row = divmod(sequence, state.rows)
        count = state.counts[row]
        tokens = torch.tensor(state.tokens[row][count - new :], dtype=torch.long, device=state.roots.device)
        features = state.features[branch, row, count - new : count]
        return self.fuse(self.embed(self.target, tokens), self.project(features))

    @torch.inference_mode()
    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        height = self._plan.height(limit, self.cost)
        if height < 1:
            return root(state.roots)
        began = perf_counter()
        assert self._last is not None
        device, hidden = state.roots.device, self._last[:, None]
        size, counts = len(hidden), torch.tensor(state.counts, device=device)[:, None]
        places = torch.arange(size, device=device)[:, None]
        # The slots that the nodes of a level see: the committed ones, to which each level adds its own.
        seen = (torch.arange(self._cache.capacity, device=device) < self._cache.lengths[:, None])[:, None]
        drafted, known = 0, len(self._graphs.made) if self._graphs else 0

        def scores(depth: int, tokens: Tensor, parent_index: Tensor) -> Float[Tensor, "row beam drafted"]:
            nonlocal hidden, seen, drafted
            if depth:
                above, width = self.in_branches(parent_index), tokens.shape[1]
                self._cache.open(width, drafted)
                seen = seen[places, above].scatter_(2, self._cache.slots[:, :, None], True)
                vectors = self.in_branches(self.embed(self.target, tokens))
                hidden, logits = self._predict_level(vectors, hidden[places, above], seen, depth)
                drafted += width
            else:
                logits = self.drafted_logits(hidden)
            return self.guided_scores(state, logits, (counts + depth).expand_as(tokens))

        tree = self.grow(state, noise, height, scores)
        if not self.needs_draft_probs and (self._graphs is None or known == len(self._graphs.made)):
            self._plan.took(perf_counter() - began, height)
        return tree

    def guided_scores(
        self, state: State, logits: Float[Tensor, "sequence node drafted"], positions: Int[Tensor, "row node"]
    ) -> Float[Tensor, "row node drafted"]:
        """Processed scores of the tokens at `positions`, over the drafting vocabulary.

        The target mixes the branches, and forces and forbids tokens by their positions. It does so over its whole
        vocabulary, and is spared where a single branch drafts from a part of it.
        """
        drafted, vocabulary = logits.shape[-1], self.target.vocabulary_size
        if state.branches == 1 and drafted < vocabulary:
            return self.sampling.scores(logits)
        branches = rearrange(logits, "(row branch) node drafted -> branch row node drafted", branch=state.branches)
        if drafted == vocabulary:
            return self.sampling.scores(self.target.guide(state, branches, positions))
        index = slice(drafted) if self.tokens is None else self.tokens
        whole = logits.new_zeros(*branches.shape[:-1], vocabulary)
        whole[..., index] = branches
        guided = self.target.guide(state, whole, positions)[..., index]
        # What is forced may not be among what is drafted: then nothing is known of the others.
        guided = guided.masked_fill(guided.isneginf().all(-1, keepdim=True), 0.0)
        return self.sampling.scores(guided)

    def _predict_level(
        self,
        vectors: Float[Tensor, "sequence beam width"],
        hidden: Float[Tensor, "sequence beam hidden"],
        seen: Bool[Tensor, "sequence beam slot"],
        depth: int,
    ) -> tuple[Float[Tensor, "sequence beam hidden"], Float[Tensor, "sequence beam drafted"]]:
        """Hidden states and logits of one level of the tree, whose slots are open, by the input vectors of its tokens
        and the hidden states above them; a node sees what is committed, its ancestors and itself.
        """
        cache, positions = self._cache, self._positions(depth - 1).expand(*self.axes, *vectors.shape[:2])
        if self._graphs is None or len(vectors) > SEQUENCES or self.needs_draft_probs:
            mask = seen[:, None, :, : cache.visible]
            hidden = self.layer(self.fuse_level(vectors, hidden), mask, positions, cache)
            return hidden, self.drafted_logits(hidden)
        entries = [(layer.keys, layer.values) for layer in cache.written]
        given = (vectors, hidden, seen[:, None], positions, cache.slots, entries)
        shape = (*vectors.shape[:2], cache.capacity)
        hidden, logits = self._graphs.run(shape, self._level, given, Written(entries, cache.slots))
        return hidden, logits

    def _level(
        self,
        vectors: Tensor,
        hidden: Tensor,
        mask: Tensor,
        positions: Tensor,
        slots: Tensor,
        entries: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """See `_predict_level`; keys and values go to `slots` of `entries`."""
        cache = Cache(layers=[GraphLayer(keys, values, slots) for keys, values in entries])
        hidden = self.layer(self.fuse_level(vectors, hidden), mask, positions, cache)
        return hidden, self.drafted_logits(hidden)
