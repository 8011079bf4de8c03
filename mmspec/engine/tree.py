"""Draft trees: candidate tokens with parents, and how they are built from scored candidates."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Slots kept for one tree, whatever the drafter: a cache of equal size makes passes of equal bits (see cache.KV_BLOCK).
MAX_TREE_NODES = 64


@dataclass(frozen=True)
class DraftTree:
    """Candidate continuations of each row; node 0 is the root, the last committed token.

    A parent always comes before its children. Padding nodes have parent -1 and depth 0, and are never accepted.
    `height` is the depth of the deepest node, which the builder knows without asking the device.

    `path_probs` is the estimated probability that a node is reached, i.e. that its path is accepted. With it, nodes
    are sorted by that probability, so that the first n of them are a tree for every n, and the loop chooses how many
    are verified; None says that the whole tree is verified.

    `probs` holds, for trees whose tokens were *sampled*, the distribution that each node was sampled from; None says
    that the tokens are a function of the prefix alone (a point mass each). `with_replacement` tells whether siblings
    were sampled independently, or from one distribution without replacement. No node has more than `max_children`.
    """

    tokens: Int[Tensor, "row node"]
    parents: Int[Tensor, "row node"]
    depths: Int[Tensor, "row node"]
    height: int
    path_probs: Float[Tensor, "row node"] | None = None
    probs: Float[Tensor, "row node vocab"] | None = None
    with_replacement: bool = True
    max_children: int | None = None

    @property
    def size(self) -> int:
        return self.tokens.shape[1]

    @cached_property
    def ancestors(self) -> Bool[Tensor, "row node node"]:
        """[b, i, j] is true when j lies on the path from the root to i, i included."""
        reach = torch.eye(self.size, device=self.tokens.device).expand(len(self.tokens), -1, -1).clone()
        reach.scatter_(2, self.parents.clamp(min=0).unsqueeze(2), 1.0)
        reach[:, 0, 1:] = 0.0
        span = 1
        while span < self.height:
            reach = (reach @ reach).clamp(max=1.0)
            span *= 2
        return reach.bool()

    def path(self, chosen: Bool[Tensor, "row node"]) -> tuple[Int[Tensor, "row depth"], Int[Tensor, "row"]]:
        """The longest path from the root through `chosen` nodes, of which no two are siblings: its nodes, root first,
        and how many they are; what follows them is padding.
        """
        nodes = torch.arange(self.size, device=self.tokens.device)
        real = (self.parents >= 0) | (nodes == 0)
        on_path = real & ~(self.ancestors & ~(chosen | (nodes == 0))[:, None]).any(2)
        path = torch.where(on_path, nodes, self.size - 1).sort(1).values[:, : self.height + 1]
        return path, on_path.sum(1)

    def first_children(self) -> "DraftTree":
        """The chain from the root to the first child each time: the most probable one where nodes are sorted, and a
        draw from the same distributions where they were sampled.
        """
        if self.max_children == 1:
            return self
        nodes = torch.arange(self.size, device=self.tokens.device)
        parents, drafted = self.parents.clamp(min=0), (self.parents >= 0) & (nodes > 0)
        first = torch.full_like(parents, self.size)
        first.scatter_reduce_(1, parents, nodes.where(drafted, self.size), "amin")
        path, lengths = self.path(drafted & (nodes == first.gather(1, parents)))
        tree = chain(self.tokens[:, 0], self.tokens.gather(1, path)[:, 1:], lengths - 1)
        path_probs, probs = self.path_probs, self.probs
        if path_probs is not None:
            beyond = torch.arange(path.shape[1], device=path.device) >= lengths[:, None]
            path_probs = path_probs.gather(1, path).masked_fill(beyond, 0.0)
        if probs is not None:
            probs = probs.gather(1, path[:, :, None].expand(-1, -1, probs.shape[2]))
        return replace(tree, path_probs=path_probs, probs=probs)

    def within(self, heights: list[int]) -> "DraftTree":
        """A chain of which each row keeps the first `heights[row]` guesses."""
        most = min(max(heights), self.height)
        tree = self.first(1 + most, most)
        beyond = tree.depths > torch.tensor(heights, device=tree.depths.device)[:, None]
        path_probs = None if tree.path_probs is None else tree.path_probs.masked_fill(beyond, 0.0)
        parents, depths = tree.parents.masked_fill(beyond, -1), tree.depths.masked_fill(beyond, 0)
        return replace(tree, parents=parents, depths=depths, path_probs=path_probs, max_children=1)

    def first(self, nodes: int, height: int) -> "DraftTree":
        """The tree of the first `nodes` nodes, of that height; they must be sorted by `path_probs`."""
        if nodes >= self.size:
            return replace(self, height=height)
        probs = None if self.path_probs is None else self.path_probs[:, :nodes]
        tokens, parents, depths = (part[:, :nodes] for part in (self.tokens, self.parents, self.depths))
        return DraftTree(tokens, parents, depths, height, probs, max_children=self.max_children)


def root(tokens: Int[Tensor, "row"]) -> DraftTree:
    """The empty draft: nothing but the last committed token."""
    nodes = rearrange(tokens, "row -> row 1")
    return DraftTree(nodes, torch.full_like(nodes, -1), torch.zeros_like(nodes), 0)


def chain(
    tokens: Int[Tensor, "row"], guesses: Int[Tensor, "row depth"], lengths: Int[Tensor, "row"] | None = None
) -> DraftTree:
    """A tree of width 1; row b uses its first `lengths[b]` guesses and pads the rest."""
    nodes = torch.cat([tokens[:, None], guesses], dim=1)
    depths = torch.arange(nodes.shape[1], device=nodes.device).expand_as(nodes)
    parents = depths - 1
    if lengths is not None:
        beyond = depths > lengths[:, None]
        parents, depths = parents.masked_fill(beyond, -1), depths.masked_fill(beyond, 0)
        depths = depths.contiguous()
    return DraftTree(nodes, parents, depths, guesses.shape[1], max_children=1)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Children proposed for each node of a level, best first: tokens, the estimated probability of each being
    accepted.
    """

    tokens: Int[Tensor, "row beam rank"]
    probs: Float[Tensor, "row beam rank"]


def build_tree(
    tokens: Int[Tensor, "row"],
    expand: Callable[[int, Int[Tensor, "row beam"], Int[Tensor, "row beam"]], Candidates],
    height: int,
    beam: int,
    max_nodes: int,
) -> DraftTree:
    """Build, level by level, a tree of the nodes with the largest probability of being reached.

    `expand(depth, tokens, parent_index)` proposes children of the beam at `depth`; `parent_index[b, i]` is the index,
    in the beam before, of the parent of `tokens[b, i]`. The probability of reaching a node is the product of the
    probabilities along its path, so the best nodes always form a connected tree. The `beam` best nodes of a level are
    expanded; all children that were proposed compete for the `max_nodes` places.
    """
    rows, device = len(tokens), tokens.device
    level, parent_index = tokens[:, None], torch.zeros(rows, 1, dtype=torch.long, device=device)
    path_probs = torch.ones(rows, 1, device=device)
    ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
    all_tokens, all_parents, all_probs = [], [], []
    count = 1
    for depth in range(height):
        children = expand(depth, level, parent_index)
        ranks = children.tokens.shape[2]
        probs = (path_probs[:, :, None] * children.probs.nan_to_num(0.0)).flatten(1)
        all_tokens.append(children.tokens.flatten(1))
        all_probs.append(probs)
        all_parents.append(ids[:, :, None].expand(-1, -1, ranks).flatten(1))
        if depth + 1 < height:
            path_probs, best = probs.topk(min(beam, probs.shape[1]), dim=1)
            parent_index, level, ids = best // ranks, all_tokens[-1].gather(1, best), count + best
            count += probs.shape[1]
    if not all_tokens:
        return root(tokens)
    depths = [depth + 1 for depth, level in enumerate(all_tokens) for _ in range(level.shape[1])]
    nodes, parents, path_probs = (torch.cat(part, dim=1) for part in (all_tokens, all_parents, all_probs))
    every_depth = torch.tensor(depths, device=device).expand_as(nodes)
    return sorted_tree(tokens, nodes, parents, every_depth, path_probs, height, max_nodes)


def sorted_tree(
    tokens: Int[Tensor, "row"],
    nodes: Int[Tensor, "row node"],
    parents: Int[Tensor, "row node"],
    depths: Int[Tensor, "row node"],
    path_probs: Float[Tensor, "row node"],
    height: int,
    max_nodes: int,
) -> DraftTree:
    """The tree of each row's `max_nodes` most probable nodes, sorted; `parents` count from 1, 0 being the root.

    A parent is at least as probable as its children and comes before them, so a stable sort keeps that order.
    """
    ordered, order = path_probs.sort(dim=1, descending=True, stable=True)
    ordered, order = ordered[:, :max_nodes], order[:, :max_nodes]
    position = parents.new_zeros(len(nodes), nodes.shape[1] + 1)
    position.scatter_(1, order + 1, torch.arange(1, order.shape[1] + 1, device=nodes.device).expand_as(order))
    head = tokens[:, None]
    return DraftTree(
        torch.cat([head, nodes.gather(1, order)], 1),
        torch.cat([torch.full_like(head, -1), position.gather(1, parents.gather(1, order))], 1),
        torch.cat([torch.zeros_like(head), depths.gather(1, order)], 1),
        height,
        torch.cat([torch.ones_like(ordered[:, :1]), ordered], 1),
    )
