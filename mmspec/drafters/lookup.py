"""Prompt lookup: what followed the last time these tokens were seen (Saxena 2023), in the prompt or in what was
generated.
"""

from itertools import takewhile

import torch

from mmspec.drafters.base import Drafter
from mmspec.engine.noise import Noise
from mmspec.engine.state import State
from mmspec.engine.tree import DraftTree, chain


class LookupDrafter(Drafter):
    """Finds the most recent earlier occurrence of the longest suffix (`longest` down to 1 tokens) and copies on from
    there.
    """

    name = "lookup"

    def __init__(self, max_nodes: int = 7, longest: int = 3):
        self.max_nodes, self.longest = max_nodes, longest

    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        copies = [self._copy(state.history(row)) for row in range(state.rows)]
        height = min(limit, max(map(len, copies)))
        guesses = [(row + [0] * height)[:height] for row in copies]
        device = state.roots.device
        lengths = torch.tensor([min(len(row), height) for row in copies], device=device)
        nodes = torch.tensor(guesses, dtype=torch.long, device=device).view(len(copies), height)
        return chain(state.roots, nodes, lengths)

    def _copy(self, history: list[int]) -> list[int]:
        """What followed the longest suffix of a row that occurred before; prompt tokens outside the vocabulary
        end it.
        """
        for size in range(min(self.longest, len(history) - 1), 0, -1):
            suffix = history[-size:]
            for end in range(len(history) - 1, size - 1, -1):
                if history[end - size : end] == suffix:
                    return list(takewhile(lambda token: token >= 0, history[end : end + self.max_nodes]))
        return []
