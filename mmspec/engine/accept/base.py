"""What an acceptance rule is, and the path through the tree that it gives."""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmspec.engine.noise import Noise
from mmspec.engine.tree import DraftTree


@dataclass(frozen=True, slots=True)
class Committed:
    """An accepted path as lists: the nodes of each row, root first, and as many tokens, the bonus token last.

    `samples` are the target's own samples at every node of the tree.
    """

    paths: list[list[int]]
    tokens: list[list[int]]
    samples: list[list[int]]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The accepted path of every row, on the device.

    The first `lengths[b]` of `path[b]` are the accepted nodes, root first; the first `lengths[b]` of `tokens[b]` are
    what they commit: the accepted draft tokens and the bonus token. `samples` are the target's own samples at every
    node: argmax (scores + Gumbel noise).
    """

    path: Int[Tensor, "row depth"]
    tokens: Int[Tensor, "row depth"]
    lengths: Int[Tensor, "row"]
    samples: Int[Tensor, "row node"]

    def read(self) -> Committed:
        """All of it as lists, in one read of the device."""
        depth = self.path.shape[1]
        packed = torch.cat([self.lengths[:, None], self.path, self.tokens, self.samples], 1).tolist()
        return Committed(
            [row[1 : 1 + row[0]] for row in packed],
            [row[1 + depth : 1 + depth + row[0]] for row in packed],
            [row[1 + 2 * depth :] for row in packed],
        )


@runtime_checkable
class AcceptanceRule(Protocol):
    """Which path of a draft tree is kept, and the bonus token that follows it. A frozen dataclass; its fields are its
    options.

    `needs_draft_probs` asks drafters to sample trees and to say from which distributions.
    """

    needs_draft_probs: ClassVar[bool]
    usage: ClassVar[str]

    @property
    def name(self) -> str:
        """The rule with its options, as `acceptance` reads it."""
        ...

    @property
    def lossless(self) -> bool:
        """Whether the output is distributed as the target's own."""
        ...

    def __call__(
        self,
        tree: DraftTree,
        scores: Float[Tensor, "row node vocab"],
        gumbel_scores: Float[Tensor, "row node vocab"],
        noise: Noise,
        counts: list[int],
        protected: frozenset[int],
    ) -> Accepted:
        """`scores` are processed logits, `gumbel_scores` the same plus Gumbel noise, `counts` the tokens each row has
        so far.

        `protected` tokens say where others belong, such as the end of a row: lossy rules accept neither such a token
        in another's place nor another in its place.
        """
        ...


def add_gumbel(
    tree: DraftTree, scores: Float[Tensor, "row node vocab"], noise: Noise, counts: list[int]
) -> Float[Tensor, "row node vocab"]:
    """log p + g at every node, where g belongs to the position that the node predicts (DESIGN: seed-exact sampling)."""
    if noise.greedy:
        return scores
    gumbel = noise.gumbel(counts, tree.height + 1)
    index = tree.depths[:, :, None].expand(-1, -1, gumbel.shape[2])
    return scores + gumbel.to(scores.dtype).gather(1, index)


def is_protected(tokens: Int[Tensor, "*shape"], protected: frozenset[int]) -> Bool[Tensor, "*shape"]:
    """Which tokens are among those that lossy rules do not exchange."""
    return torch.isin(tokens, torch.tensor(sorted(protected), dtype=torch.long, device=tokens.device))


def follow(
    tree: DraftTree,
    acceptable: Bool[Tensor, "row node"],
    order: Int[Tensor, "row node"],
    samples: Int[Tensor, "row node"],
) -> Accepted:
    """From the root down, go to the `acceptable` child of the lowest `order` (the first of equals) as long as there is
    one.

    The path ends with the target's own sample at its last node.
    """
    nodes = torch.arange(tree.size, device=samples.device)
    parents = tree.parents.clamp(min=0)
    real = (tree.parents >= 0) & (nodes > 0)
    nowhere = torch.iinfo(torch.long).max
    keys = torch.where(acceptable & real, order * tree.size + nodes, nowhere)
    best = torch.full_like(keys, nowhere).scatter_reduce(1, parents, keys, "amin")
    path, lengths = tree.path((keys < nowhere) & (keys == best.gather(1, parents)))
    return Accepted(path, *_tokens(tree, path, lengths, samples), samples)


def _tokens(
    tree: DraftTree, path: Int[Tensor, "row depth"], lengths: Int[Tensor, "row"], samples: Int[Tensor, "row node"]
) -> tuple[Int[Tensor, "row depth"], Int[Tensor, "row"]]:
    """What a path commits: the tokens of its nodes but the root, then the sample at its last node; and its length."""
    drafted = tree.tokens.gather(1, path).roll(-1, 1)
    last = torch.arange(path.shape[1], device=path.device) >= (lengths - 1)[:, None]
    return torch.where(last, samples.gather(1, path), drafted), lengths
