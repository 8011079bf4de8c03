"""Jacobi drafting: the target's own samples behind the accepted path, coupled by the shared noise."""

import torch
from torch import Tensor

from mmspec.drafters.base import Drafter
from mmspec.engine.accept import Committed
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.tree import DraftTree, chain
from mmspec.targets.base import Target

# A chain of L guesses has about `scale * L ** GROWTH` of them accepted: positions beyond the first wrong one are
# refined
# for later rounds, so length pays more than the probabilities of one round say. Measured on the bundled image model, 3
# to 15 guesses (docs/LOG.md).
GROWTH = 0.7

# The rate is flat around its best: take the shortest chain within this share of it.
SLACK = 0.02

# How fast the estimated scale follows what is accepted.
RATE = 0.05


class JacobiDrafter(Drafter):
    """Training-free; works on any target. After a round, the target's own samples behind the accepted path, made with
    each position's own noise, become the next guesses (MC-SJD, arXiv 2510.24211). Positions that have none yet start
    from the token above, if the target has a grid, or from the last token.

    The chain has `nodes` guesses, or, when `cost` knows what passes take here, as many as promise the most tokens per
    second given how many were accepted so far; else 15.
    """

    name = "jacobi"

    def __init__(self, nodes: int | None = None, max_nodes: int = 16):
        self.nodes, self.max_nodes = nodes, max(max_nodes, nodes or 1)

    def start(self, target: Target, state: State, sampling: SamplingOptions, needs_draft_probs: bool) -> None:
        self._stride = target.grid.stride if target.grid else 1
        self._guesses: list[list[int]] = [[] for _ in range(state.rows)]
        self._scale = 0.5

    def change_rows(self, state: State, previous: list[int | None]) -> None:
        self._guesses = [[] if row is None else self._guesses[row] for row in previous]

    def length(self) -> int:
        """How many guesses pay."""
        if self.nodes or not self.cost:
            return self.nodes or 15
        accepted = [self._scale * count**GROWTH for count in range(self.max_nodes + 1)]
        gains = [after - before for before, after in zip(accepted, accepted[1:])]
        return self.cost.best_node_count(gains, 0.0, SLACK)

    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        height = min(limit, self.length())
        rows = []
        for guesses, tokens in zip(self._guesses, state.tokens, strict=True):
            row = guesses[:height]
            while len(row) < height:
                path = tokens + row
                row.append(path[-self._stride] if len(path) >= self._stride else path[-1] if path else 0)
            rows.append(row)
        nodes = torch.tensor(rows, dtype=torch.long, device=state.roots.device).view(state.rows, height)
        return chain(state.roots, nodes)

    def observe(self, state: State, tree: DraftTree, committed: Committed, gumbel_scores: Tensor) -> None:
        paths = committed.paths
        self._guesses = [row[len(path) :] if path else [] for row, path in zip(committed.samples, paths, strict=True)]
        accepted = [len(path) - 1 for path in paths if path]
        if accepted and tree.size > 1:
            rate = sum(accepted) / len(accepted) / (tree.size - 1) ** GROWTH
            self._scale += RATE * (rate - self._scale)
