"""The state of one generation, and what a target pass returns."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmspec.engine.cache import RowCache
from mmspec.engine.tree import DraftTree
from mmspec.errors import MmspecError


@dataclass(frozen=True, slots=True)
class PromptEmbeds:
    """A prompt as a decoder takes it.

    `ids` are the model's, `vectors` input embeddings, `position_ids` have three axes for M-RoPE, `is_text` says which
    positions are text and not image, and `position_shift` is by how much the position ids of new tokens differ from
    their index.
    """

    ids: Int[Tensor, "position"]
    vectors: Float[Tensor, "position width"]
    position_ids: Int[Tensor, "*axis position"]
    is_text: Bool[Tensor, "position"]
    position_shift: int = 0


@dataclass(frozen=True, slots=True)
class Output:
    """One target pass over a tree: guided logits, and the features (see `State`) of every node in every CFG branch."""

    logits: Float[Tensor, "row node vocab"]
    hidden: Float[Tensor, "branch row node width"]


@dataclass(slots=True)
class State:
    """One generation: what is committed, and its keys, values and features. The target itself holds nothing.

    Tokens are numbered in the generated vocabulary; prompt tokens outside it are negative. The root is the last
    committed token, whose keys are not yet committed to the cache. A sequence is a row of one CFG branch; sequences are
    ordered branch by branch.

    `features[:, b, i]` is the hidden state that predicted token i of row b (the one after token i - 1 was read, i = 0
    after the prompt); it has no positions unless a drafter asks for features. Then `prompt_hidden` holds, for each
    sequence, the prompt's embeddings and the hidden states of all of its positions but the last. Hidden states are the
    decoder's last ones, or, with `feature_layers`, those that enter layers of these numbers, side by side.
    `prefill_output` is what the prompt's pass says at the root, once, for the first token.
    """

    cache: RowCache
    branches: int
    guidance: float
    roots: Int[Tensor, "row"]
    tokens: list[list[int]]
    prompt_ids: list[list[int]]
    features: Float[Tensor, "branch row position width"]
    prompt_hidden: list[tuple[PromptEmbeds, Tensor]]
    position_shift: Int[Tensor, "sequence 1"]
    prefill_output: Output
    feature_layers: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        return len(self.tokens)

    @property
    def counts(self) -> list[int]:
        """Tokens generated so far, for each row."""
        return [len(row) for row in self.tokens]

    def history(self, row: int) -> list[int]:
        """Prompt and generated tokens of a row; the last one is the root."""
        return self.prompt_ids[row] + self.tokens[row]

    def commit(self, paths: list[list[int]], tokens: list[list[int]], hidden: Tensor) -> None:
        """Append what a round accepted: keys and features of the path's nodes, and the new tokens."""
        if self.features.shape[2]:
            entries = [
                (row, count + i, node)
                for row, (path, count) in enumerate(zip(paths, self.counts, strict=True))
                for i, node in enumerate(path)
            ]
            index = torch.tensor(entries, dtype=torch.long, device=hidden.device)
            rows, positions, nodes = index.view(-1, 3).T
            self.features[:, rows, positions] = hidden[:, rows, nodes]
        self.cache.commit(paths * self.branches)
        for row, new in enumerate(tokens):
            self.tokens[row].extend(new)
        self.roots = torch.tensor([self.history(row)[-1] for row in range(self.rows)], device=self.roots.device)

    def keep(self, rows: list[int]) -> None:
        """These rows in this order; all others leave."""
        self._keep_sequences([branch * self.rows + row for branch in range(self.branches) for row in rows])
        self.roots, self.features = self.roots[rows], self.features[:, rows]
        self.tokens, self.prompt_ids = [self.tokens[row] for row in rows], [self.prompt_ids[row] for row in rows]

    def _keep_sequences(self, sequences: list[int]) -> None:
        self.cache.keep(sequences)
        self.position_shift = self.position_shift[sequences]
        self.prompt_hidden = [self.prompt_hidden[i] for i in sequences] if self.prompt_hidden else []

    def join(self, other: "State") -> None:
        """The rows of another state of the same target come after the present ones."""
        if (self.branches, self.guidance) != (other.branches, other.guidance):
            raise MmspecError("rows with different guidance cannot be generated together: make a batch of each")
        present, joining, branches = self.rows, other.rows, self.branches
        self.cache.join(other.cache)
        self.position_shift = torch.cat([self.position_shift, other.position_shift])
        self.prompt_hidden = self.prompt_hidden + other.prompt_hidden
        self.roots = torch.cat([self.roots, other.roots])
        room = max(self.features.shape[2], other.features.shape[2])
        features = self.features.new_zeros(branches, present + joining, room, self.features.shape[3])
        features[:, :present, : self.features.shape[2]] = self.features
        features[:, present:, : other.features.shape[2]] = other.features
        self.features = features
        self.tokens, self.prompt_ids = self.tokens + other.tokens, self.prompt_ids + other.prompt_ids
        if branches > 1:  # branch by branch again
            first = branches * present
            self._keep_sequences(
                [
                    sequence
                    for branch in range(branches)
                    for sequence in (
                        *range(branch * present, (branch + 1) * present),
                        *range(first + branch * joining, first + (branch + 1) * joining),
                    )
                ]
            )


class Prefixes:
    """The tokens that precede each node's prediction: committed ones, then the path to the node."""

    def __init__(self, state: State, tree: DraftTree):
        self._committed = [
            torch.tensor(state.history(row)[:-1], dtype=torch.long, device=tree.tokens.device)
            for row in range(state.rows)
        ]
        self._tokens, self._ancestors = tree.tokens, tree.ancestors

    def __call__(self, row: int, node: int) -> Int[Tensor, "position"]:
        return torch.cat([self._committed[row], self._tokens[row][self._ancestors[row, node]]])
