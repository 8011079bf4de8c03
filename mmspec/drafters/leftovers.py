"""Leftovers: what the target said, in the last round, of places that are still open."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmspec.accept import Verdict
from mmspec.tree import Candidates, DraftTree


class Leftovers:
    """log p + g of the nodes behind the accepted path, the first of each depth: the target's own opinion on the next
    places, given a prefix that is wrong at the root alone or a little further (Jacobi decoding; coupled by the shared noise
    as in MC-SJD, arXiv 2510.24211). `keys[b, d]` speaks of the place d after the root, where `known[b, d]`.
    """

    keys: Float[Tensor, "row depth vocab"]
    known: Bool[Tensor, "row depth"]

    def __init__(self, rows: int, vocabulary: int, device: torch.device, stride: int = 1):
        self.stride = stride
        self.keys = torch.zeros(rows, 0, vocabulary, device=device)
        self.known = torch.zeros(rows, 0, dtype=torch.bool, device=device)

    @property
    def depth(self) -> int:
        return self.keys.shape[1]

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
        index = torch.tensor([row + [0] * (most - len(row)) for row in rows], dtype=torch.long, device=keys.device).view(len(rows), most)
        count = torch.tensor([len(row) for row in rows], device=keys.device)
        self.known = torch.arange(most, device=keys.device) < count[:, None]
        self.keys = keys.gather(1, index[:, :, None].expand(-1, -1, keys.shape[2]))

    def levels(self, tokens: list[list[int]], height: int, ranks: int, beta: float, hope: float) -> list[Candidates]:
        """Candidates of each of `height` places, the same for all parents: the best of what is known, softmax(beta keys)
        being the chance; else the token above (with a grid) or the one before, with chance `hope`."""
        ranks = min(ranks, self.keys.shape[2])
        depth = min(height, self.depth)
        chances, children = (self.keys[:, :depth] * beta).softmax(2).topk(ranks, dim=2)
        most = [min(depth, int(count)) for count in self.known.sum(1)]
        rows = []
        for row, (committed, known) in enumerate(zip(tokens, most, strict=True)):
            path = committed + children[row, :known, 0].tolist()
            while len(path) < len(committed) + height:
                path.append(path[-self.stride] if len(path) >= self.stride else path[-1] if path else 0)
            rows.append(path[len(committed) :])
        guesses = torch.tensor(rows, dtype=torch.long, device=self.keys.device).view(len(rows), height)
        found = []
        for level in range(height):
            if level >= depth:
                found.append(Candidates(guesses[:, level, None, None], torch.full((len(rows), 1, 1), hope, device=self.keys.device)))
                continue
            ids = guesses[:, level, None].repeat(1, ranks)
            odds = torch.zeros(len(rows), ranks, device=self.keys.device)
            odds[:, 0] = hope
            there = self.known[:, level, None]
            ids, odds = torch.where(there, children[:, level], ids), torch.where(there, chances[:, level].float(), odds)
            found.append(Candidates(ids[:, None], odds[:, None]))
        return found
