"""Drafters that are made of another drafter and a table: a cascade (Chen et al., arXiv 2312.11462), and retrieved
branches fused with a model's (RASD, arXiv 2503.03434).
"""

from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor

from mmspec.drafters.base import Drafter
from mmspec.drafters.hierarchy import HierarchyDrafter
from mmspec.drafters.recycling import RecyclingDrafter
from mmspec.drafters.table_drafter import Node, TableDrafter
from mmspec.engine.accept import Committed
from mmspec.engine.cost import best_width
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.tree import MAX_TREE_NODES, DraftTree
from mmspec.errors import MmspecError
from mmspec.targets.base import Target

# The chance that a guess is right, where the drafter that made it says nothing of it, and how many levels a table may
# add.
PRIOR, BELOW = 0.8, 4


class ComposedDrafter(Drafter):
    """The tree of an `inner` drafter, as wide as it pays or three quarters of `nodes`, to which a `table` adds nodes
    that pay. Trees that are sampled for `rejection` stay as the inner drafter sampled them. The inner drafter is told
    of all tokens, and of the part of a path that lies in its own tree. Drafting reads the device once more than the
    inner drafter does.
    """

    # Whether the table adds children to all nodes, or to those that have none.
    everywhere = False

    def __init__(self, inner: Drafter, table: TableDrafter, nodes: int | None = None):
        if isinstance(inner, TableDrafter | ComposedDrafter):
            raise MmspecError(
                f"{self.name}:{inner.name} adds a table to a drafter that has one: name another, such as "
                f"{self.name}:jacobi"
            )
        self.name = f"{self.name}:{inner.name}"
        self.inner, self.table, self.nodes = inner, table, nodes
        self.max_nodes = max(MAX_TREE_NODES, nodes or 0, inner.max_nodes)
        self.needs_features, self.feature_layers = inner.needs_features, inner.feature_layers
        self._inner_nodes = inner.nodes

    def start(self, target: Target, state: State, sampling: SamplingOptions, needs_draft_probs: bool) -> None:
        super().start(target, state, sampling, needs_draft_probs)
        self.inner.cost, self.table.cost, self.table.nodes = self.cost, self.cost, self.nodes
        self.inner.nodes = self.nodes - self.nodes // 4 if self.nodes else self._inner_nodes
        self.inner.start(target, state, sampling, needs_draft_probs)
        self.table.start(target, state, sampling, needs_draft_probs)

    def change_rows(self, state: State, previous: list[int | None]) -> None:
        self.inner.change_rows(state, previous)
        self.table.change_rows(state, previous)

    def forget(self) -> None:
        self.inner.forget()
        self.table.forget()

    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        began = perf_counter()
        self._tree = tree = self.target.readable(state, self.inner.draft(state, noise, limit))
        if self.needs_draft_probs:
            return tree
        chances = PRIOR**tree.depths if tree.path_probs is None else tree.path_probs
        numbers = torch.stack([part.float() for part in (tree.tokens, tree.parents, tree.depths, chances)], 2)
        height = min(limit, tree.height + BELOW)
        gumbel, read = self.table.read(state, noise, height, numbers)
        assert read is not None
        if tree.path_probs is not None:
            width = best_width(read[:, 1:, 3].tolist(), self.inner.nodes, self.cost, perf_counter() - began)
            read = read[:, : 1 + width]
        given = [
            [
                Node(int(token), int(parent), int(depth), chance)
                for number, (token, parent, depth, chance) in enumerate(row)
                if number == 0 or parent >= 0  # padding comes last
            ]
            for row in read.tolist()
        ]
        self._own = [len(row) for row in given]
        self._tree = tree.first(max(self._own), int(read[:, :, 2].max()))
        return self.table.grow(state, gumbel, height, began, given, self.everywhere)

    def observe(self, state: State, tree: DraftTree, committed: Committed, gumbel_scores: Tensor) -> None:
        if self.needs_draft_probs:
            return self.inner.observe(state, tree, committed, gumbel_scores)
        paths = [[node for node in path if node < own] for path, own in zip(committed.paths, self._own, strict=True)]
        own_scores = gumbel_scores[:, : self._tree.size]
        self.inner.observe(state, self._tree, replace(committed, paths=paths), own_scores)
        self.table.observe(state, tree, committed, gumbel_scores)


class CascadeDrafter(ComposedDrafter):
    """A horizontal cascade: the first tokens are the inner drafter's, the later ones, which are accepted less often,
    come from a table that costs nothing (here that of Token Recycling; the paper ends with bigrams).

    The vertical cascade, in which a smaller drafter speeds up the inner one, is for drafters that are language models
    and draft token by token; those of mmspec draft a level, or all levels, in one pass.
    """

    name = "cascade"

    def __init__(self, inner: Drafter, nodes: int | None = None):
        super().__init__(inner, RecyclingDrafter(), nodes)


class RasdDrafter(ComposedDrafter):
    """RASD: what a table of n-grams retrieves, from this text and earlier ones, is fused with the inner drafter's tree:
    equal prefixes become one path, and the retrieved branches stay that pay.

    The paper prunes retrieved branches by the inner drafter's probabilities of their first tokens; that learnt chances
    prune them is our choice.
    """

    name, everywhere = "rasd", True

    def __init__(self, inner: Drafter, nodes: int | None = None):
        super().__init__(inner, HierarchyDrafter(ranks=4), nodes)
