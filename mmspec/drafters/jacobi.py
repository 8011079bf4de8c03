"""Jacobi drafting: the last round's leftovers, refined by the target itself and coupled by the shared noise."""

import torch
from torch import Tensor

from mmspec.accept import Verdict
from mmspec.sampling import Noise, Sampling
from mmspec.targets.base import State, Target
from mmspec.tree import DraftTree, chain


class JacobiDrafter:
    """Training-free; works on any target. After a round, the target's own samples behind the accepted path, made with
    each position's own noise, become the next guesses (MC-SJD, arXiv 2510.24211). Positions that have none yet start
    from the token above, if the target has a grid, or from the last token.
    """

    name = "jacobi"
    needs_features = False

    def __init__(self, max_nodes: int = 15):
        self.max_nodes = max_nodes
        self._guesses: list[list[int]] = []
        self._stride = 1

    def start(self, target: Target, state: State, sampling: Sampling, drawn: bool) -> None:
        grid = getattr(target, "grid", None)
        self._stride = grid.stride if grid else 1
        self._guesses = [[] for _ in range(state.rows)]

    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        height = min(limit, self.max_nodes)
        rows = []
        for guesses, tokens in zip(self._guesses, state.tokens, strict=True):
            row = guesses[:height]
            while len(row) < height:
                path = tokens + row
                row.append(path[-self._stride] if len(path) >= self._stride else path[-1] if path else 0)
            rows.append(row)
        nodes = torch.tensor(rows, dtype=torch.long, device=state.roots.device).view(state.rows, height)
        return chain(state.roots, nodes)

    def observe(self, state: State, tree: DraftTree, verdict: Verdict, keys: Tensor) -> None:
        samples = keys.argmax(2).tolist()
        self._guesses = [row[len(path) :] if path else [] for row, path in zip(samples, verdict.paths, strict=True)]
