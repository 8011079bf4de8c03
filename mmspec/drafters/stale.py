"""Stale scores: what the target said, in the last round, of positions that are still open."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmspec.engine.accept import Committed
from mmspec.engine.tree import DraftTree


class StaleScores:
    """log p + g of the nodes behind the accepted path, the first of each depth.

    They are the target's own opinion on the next positions, given a prefix that is wrong at the root alone or a little
    further (Jacobi decoding; coupled by the shared noise as in MC-SJD, arXiv 2510.24211). `scores[b, d]` speaks of the
    position d after the root, where `valid[b, d]`.
    """

    scores: Float[Tensor, "row depth vocab"]
    valid: Bool[Tensor, "row depth"]

    def __init__(self, rows: int, vocabulary: int, device: torch.device):
        self.scores = torch.zeros(rows, 0, vocabulary, device=device)
        self.valid = torch.zeros(rows, 0, dtype=torch.bool, device=device)

    def change_rows(self, previous: list[int | None]) -> None:
        """Row i was `previous[i]`; of a new one nothing is known."""
        rows = [row or 0 for row in previous]
        present = torch.tensor([[row is not None] for row in previous], device=self.valid.device)
        self.scores, self.valid = self.scores[rows], self.valid[rows] & present

    @property
    def depth(self) -> int:
        return self.scores.shape[1]

    def mix(self, depth: int, scores: Float[Tensor, "row node vocab"], share: float) -> Float[Tensor, "row node vocab"]:
        """A drafter's own scores for a depth, with `share` of the stale ones where there are any."""
        if not share or depth >= self.depth:
            return scores
        blend = (1 - share) * scores + share * self.scores[:, depth, None].to(scores.dtype)
        return torch.where(self.valid[:, depth, None, None], blend, scores)

    def observe(self, tree: DraftTree, committed: Committed, gumbel_scores: Float[Tensor, "row node vocab"]) -> None:
        """Keep what a round said of positions that it did not commit."""
        device = gumbel_scores.device
        lengths = [len(tokens) or tree.height + 1 for tokens in committed.tokens]
        levels = torch.arange(tree.height + 1, device=device)
        real = (tree.parents >= 0) | (torch.arange(tree.size, device=device) == 0)
        at_level = (tree.depths[:, :, None] == levels) & real[:, :, None]
        exists, first = at_level.any(1), at_level.int().argmax(1)
        most = max(0, tree.height + 1 - min(lengths))
        depths = torch.tensor(lengths, device=device)[:, None] + torch.arange(most, device=device)
        index = depths.clamp(max=tree.height)
        self.valid = (depths <= tree.height) & exists.gather(1, index)
        nodes = first.gather(1, index)
        self.scores = gumbel_scores.gather(1, nodes[:, :, None].expand(-1, -1, gumbel_scores.shape[2]))
