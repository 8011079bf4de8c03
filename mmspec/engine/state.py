"""The state of one generation, and what a target pass returns."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmspec.engine.cache import TreeCache
from mmspec.engine.tree import DraftTree
from mmspec.errors import MmspecError


@dataclass(frozen=True, slots=True)
class PromptEmbeds:
    """A prompt as a decoder takes it: input vectors, position ids (three rows of them for M-RoPE), which positions are text and not
    image, and by how much the position ids of new tokens differ from their index."""

    vectors: Float[Tensor, "position width"]
    places: Int[Tensor, "*axis position"]
    text: Bool[Tensor, "position"]
    shift: int = 0


@dataclass(slots=True)
class State:
    """One generation: what is committed, and its keys, values and features. The target itself holds nothing.

    Tokens are numbered in the generated vocabulary; prompt tokens outside it are negative. The root is the last
    committed token, whose keys are not yet committed to the cache. `features[:, b, i]` is the hidden state that predicted
    token i of row b (the one after token i - 1 was read, i = 0 after the prompt); it has no positions unless a drafter asks.
    Then `context` holds, for each stream's row, the prompt and the hidden states of all of its positions but the last.
    `ahead[b]` is what reading the prompt said of the first token of row b, until that is committed.
    """

    cache: TreeCache
    branches: int
    roots: Int[Tensor, "row"]
    tokens: list[list[int]]
    prompts: list[Tensor]
    features: Float[Tensor, "stream row position width"]
    context: list[tuple[PromptEmbeds, Tensor]]
    shift: Int[Tensor, "sequence 1"]
    ahead: "list[Output | None]"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.tokens)

    @property
    def counts(self) -> list[int]:
        """Tokens generated so far, for each row."""
        return [len(row) for row in self.tokens]

    def history(self, row: int) -> Int[Tensor, "position"]:
        """Prompt and generated tokens of a row; the last one is the root."""
        return torch.cat(
            [self.prompts[row], torch.tensor(self.tokens[row], dtype=torch.long, device=self.roots.device)]
        )

    def first(self) -> "Output":
        """A pass over the root of every row whose prompt has just been read; of other rows it says nothing."""
        known = next(one for one in self.ahead if one)
        rows = [one or Output(torch.zeros_like(known.logits), torch.zeros_like(known.hidden)) for one in self.ahead]
        return Output(torch.cat([one.logits for one in rows]), torch.cat([one.hidden for one in rows], 1))

    def commit(self, tree: DraftTree, paths: list[list[int]], tokens: list[list[int]], hidden: Tensor) -> None:
        """Append what a round accepted: keys and features of the path's nodes, and the new tokens."""
        if self.features.shape[2]:
            for row, (path, count) in enumerate(zip(paths, self.counts, strict=True)):
                if path:
                    self.features[:, row, count : count + len(path)] = hidden[:, row, path]
        self.cache.commit(paths * self.branches)
        for row, new in enumerate(tokens):
            self.tokens[row].extend(new)
        self.roots = torch.tensor(
            [row[-1] if row else int(root) for row, root in zip(self.tokens, self.roots)], device=self.roots.device
        )

    def keep(self, rows: list[int]) -> None:
        """These rows in this order; all others leave."""
        sequences = [stream * self.rows + row for stream in range(self.branches) for row in rows]
        self.cache.keep(sequences)
        self.shift = self.shift[sequences]
        self.context = [self.context[sequence] for sequence in sequences] if self.context else []
        self.roots, self.features, self.ahead = (
            self.roots[rows],
            self.features[:, rows],
            [self.ahead[row] for row in rows],
        )
        self.tokens, self.prompts = [self.tokens[row] for row in rows], [self.prompts[row] for row in rows]

    def join(self, other: "State") -> None:
        """The rows of another state of the same target come after the present ones."""
        if self.branches != other.branches or self.options != other.options:
            raise MmspecError("rows with different guidance cannot be generated together: make a batch of each")
        mine, theirs, streams = self.rows, other.rows, self.branches
        self.cache.join(other.cache)
        self.shift = torch.cat([self.shift, other.shift])
        self.context = self.context + other.context
        self.roots = torch.cat([self.roots, other.roots])
        room = max(self.features.shape[2], other.features.shape[2])
        features = self.features.new_zeros(streams, mine + theirs, room, self.features.shape[3])
        features[:, :mine, : self.features.shape[2]] = self.features
        features[:, mine:, : other.features.shape[2]] = other.features
        self.features = features
        self.tokens, self.prompts, self.ahead = (
            self.tokens + other.tokens,
            self.prompts + other.prompts,
            self.ahead + other.ahead,
        )
        if streams > 1:  # stream by stream again
            order = [
                i
                for s in range(streams)
                for i in (
                    *range(s * mine, (s + 1) * mine),
                    *range(streams * mine + s * theirs, streams * mine + (s + 1) * theirs),
                )
            ]
            self.cache.keep(order)
            self.shift = self.shift[order]
            self.context = [self.context[i] for i in order] if self.context else []


@dataclass(frozen=True, slots=True)
class Output:
    """One target pass over a tree: guided logits, and the hidden state of every node in every stream."""

    logits: Float[Tensor, "row node vocab"]
    hidden: Float[Tensor, "stream row node width"]
