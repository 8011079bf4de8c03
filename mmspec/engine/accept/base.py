"""What an acceptance rule is, and the path through the tree that it gives."""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmspec.engine.largest import argmax
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
    ) -> "Accepted | Acceptable":
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
    first = torch.arange(0, gumbel.shape[0] * gumbel.shape[1], gumbel.shape[1], device=gumbel.device)
    # Whole rows are copied many times faster by `index_select` than by `gather`.
    rows = gumbel.to(scores.dtype).flatten(0, 1).index_select(0, (first[:, None] + tree.depths).flatten())
    return rows.view_as(scores).add_(scores)


def is_protected(tokens: Int[Tensor, "*shape"], protected: frozenset[int]) -> Bool[Tensor, "*shape"]:
    """Which tokens are among those that lossy rules do not exchange."""
    return torch.isin(tokens, torch.tensor(sorted(protected), dtype=torch.long, device=tokens.device))


@dataclass(frozen=True, slots=True)
class Acceptable:
    """Which nodes may be accepted: from the root down, the path goes to the child of the lowest `order` that is not
    negative (the first of equals), as long as there is one, and ends with the target's own sample at its last node.
    """

    tree: DraftTree
    order: Int[Tensor, "row node"]
    samples: Int[Tensor, "row node"]

    def read(self) -> Committed:
        """The path and what it commits as lists, in one read of the device; the walk costs less here than there."""
        tree = self.tree
        paths, tokens, samples = [], [], []
        packed = torch.stack([tree.parents, tree.tokens, self.order, self.samples], 1).tolist()
        for parents, drafted, order, own in packed:
            best: dict[int, int] = {}
            for node in range(1, tree.size):
                parent = parents[node]
                if order[node] >= 0 <= parent and (parent not in best or order[node] < order[best[parent]]):
                    best[parent] = node
            path = [0]
            while path[-1] in best:
                path.append(best[path[-1]])
            paths.append(path)
            tokens.append([*(drafted[node] for node in path[1:]), own[path[-1]]])
            samples.append(own)
        return Committed(paths, tokens, samples)


def above(
    tree: DraftTree,
    p: Float[Tensor, "row node vocab"],
    floor: Float[Tensor, "row node"],
    gumbel_scores: Float[Tensor, "row node vocab"],
    protected: frozenset[int],
    strictly: bool = False,
    samples_too: bool = False,
) -> Acceptable:
    """Children may be accepted that have at least (or more than) the probability `floor` of their parent, or that are
    the target's own sample if `samples_too`, the most probable first; where tokens are `protected`, the sample alone.
    """
    samples = argmax(gumbel_scores)
    parents = tree.parents.clamp(min=0)
    expected, least = samples.gather(1, parents), floor.gather(1, parents)
    child_p = p.flatten(1).gather(1, parents * p.shape[2] + tree.tokens.clamp(min=0))
    exchanged = is_protected(tree.tokens, protected) | is_protected(expected, protected)
    sampled = tree.tokens == expected
    acceptable = (child_p > least if strictly else child_p >= least) & (sampled | ~exchanged) | (sampled & samples_too)
    # The rank of each node by falling probability, the last of equals first.
    order = child_p.flip(1).argsort(dim=1, descending=True, stable=True).argsort(1).flip(1)
    return Acceptable(tree, order.where(acceptable, -1), samples)
