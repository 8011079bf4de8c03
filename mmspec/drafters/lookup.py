"""Prompt lookup: what followed the last time these tokens were seen (Saxena 2023), in the prompt or in what was generated."""

from itertools import takewhile

import torch
from torch import Tensor

from mmspec.engine.accept import Verdict
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.tree import DraftTree, chain
from mmspec.targets.base import Target


class LookupDrafter:
    """Finds the most recent earlier occurrence of the longest suffix (`longest` down to 1 tokens) and copies on from there."""

    name = "lookup"
    needs_features = False

    def __init__(self, max_nodes: int = 7, longest: int = 3):
        self.max_nodes, self.longest = max_nodes, longest

    def start(self, target: Target, state: State, sampling: SamplingOptions, drawn: bool) -> None:
        self._vocabulary = target.vocabulary_size

    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        found = [self._copy(state.history(row).tolist()) for row in range(state.rows)]
        height = min(limit, max(map(len, found)))
        guesses = [(row + [0] * height)[:height] for row in found]
        lengths = torch.tensor([min(len(row), height) for row in found], device=state.roots.device)
        return chain(
            state.roots,
            torch.tensor(guesses, dtype=torch.long, device=state.roots.device).view(len(found), height),
            lengths,
        )

    def _copy(self, history: list[int]) -> list[int]:
        for size in range(min(self.longest, len(history) - 1), 0, -1):
            suffix = history[-size:]
            for end in range(len(history) - 1, size - 1, -1):
                if history[end - size : end] == suffix:
                    following = history[end : end + self.max_nodes]
                    return list(takewhile(lambda token: 0 <= token < self._vocabulary, following))
        return []

    def observe(self, state: State, tree: DraftTree, verdict: Verdict, keys: Tensor) -> None: ...
