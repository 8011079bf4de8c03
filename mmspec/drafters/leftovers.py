"""Leftovers: what the target said, in the last round, of places that are still open."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmspec.engine.accept import Verdict
from mmspec.engine.tree import DraftTree


class Leftovers:
    """log p + g of the nodes behind the accepted path, the first of each depth: the target's own opinion on the next
    places, given a prefix that is wrong at the root alone or a little further (Jacobi decoding; coupled by the shared noise
    as in MC-SJD, arXiv 2510.24211). `keys[b, d]` speaks of the place d after the root, where `known[b, d]`.
    """

    keys: Float[Tensor, "row depth vocab"]
    known: Bool[Tensor, "row depth"]

    def __init__(self, rows: int, vocabulary: int, device: torch.device):
        self.keys = torch.zeros(rows, 0, vocabulary, device=device)
        self.known = torch.zeros(rows, 0, dtype=torch.bool, device=device)

    def reseat(self, former: list[int | None]) -> None:
        """Row i was `former[i]`; of a new one nothing is known."""
        rows = [row or 0 for row in former]
        self.keys = self.keys[rows]
        self.known = self.known[rows] & torch.tensor([[row is not None] for row in former], device=self.known.device)

    @property
    def depth(self) -> int:
        return self.keys.shape[1]

    def mix(self, depth: int, keys: Float[Tensor, "row node vocab"], share: float) -> Float[Tensor, "row node vocab"]:
        """A drafter's own keys for a depth, with `share` of the leftovers' where those are known."""
        if not share or depth >= self.depth:
            return keys
        blend = (1 - share) * keys + share * self.keys[:, depth, None].to(keys.dtype)
        return torch.where(self.known[:, depth, None, None], blend, keys)

    def observe(self, tree: DraftTree, verdict: Verdict, keys: Float[Tensor, "row node vocab"]) -> None:
        """Keep what a round said of places that it did not commit."""
        rows = []
        for depths, path in zip(tree.depths.tolist(), verdict.paths, strict=True):
            first: dict[int, int] = {}
            for node, depth in enumerate(depths):
                if path and depth >= len(path):
                    first.setdefault(depth, node)
            rows.append([first[depth] for depth in sorted(first)])
        most = max(map(len, rows))
        index = torch.tensor(
            [row + [0] * (most - len(row)) for row in rows], dtype=torch.long, device=keys.device
        ).view(len(rows), most)
        count = torch.tensor([len(row) for row in rows], device=keys.device)
        self.known = torch.arange(most, device=keys.device) < count[:, None]
        self.keys = keys.gather(1, index[:, :, None].expand(-1, -1, keys.shape[2]))
