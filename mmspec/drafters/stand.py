"""STAND: a store of n-grams with the target's mean probabilities (Song et al., arXiv 2506.04708)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, log

from mmspec.drafters.table_drafter import Known, TableDrafter, make_room


@dataclass(slots=True)
class Mean:
    """Probabilities of tokens, summed over `count` times."""

    count: int = 0
    sums: dict[int, float] = field(default_factory=dict)


class StandDrafter(TableDrafter):
    """Training-free; works on any target. For contexts of 1 to `longest` tokens the store keeps the mean of the
    target's probabilities after them, of the `ranks` most probable tokens; the longest context that is known is drafted
    from, by Gumbel top-k: with the noise that the target's sample will use (our choice: the paper's is its own).

    The paper prunes one static tree of 80 nodes from 30 samples; here the tree grows by what ranks were worth.
    """

    name = "stand"

    def __init__(self, ranks: int = 8, depth: int = 8, nodes: int | None = None, longest: int = 3):
        super().__init__(ranks, depth, nodes)
        self.longest = longest

    @property
    def order(self) -> int:
        return self.longest

    def clear(self) -> None:
        self._store: dict[tuple[int, ...], Mean] = {}

    def after(self, context: Sequence[int]) -> Known | None:
        for length in range(min(self.longest, len(context)), 0, -1):
            if mean := self._store.get(tuple(context[-length:])):
                best = sorted(mean.sums, key=mean.sums.__getitem__, reverse=True)[: self.ranks]
                return Known(best, [log(mean.sums[token] / mean.count) for token in best], length)
        return None

    def learn(self, context: Sequence[int], tokens: list[int], log_probs: list[float]) -> None:
        for length in range(1, min(self.longest, len(context)) + 1):
            mean = self._store.setdefault(tuple(context[-length:]), Mean())
            mean.count += 1
            for token, log_prob in zip(tokens, log_probs):
                mean.sums[token] = mean.sums.get(token, 0.0) + exp(log_prob)
            if len(mean.sums) > 16 * self.ranks:
                best = sorted(mean.sums, key=mean.sums.__getitem__, reverse=True)[: 8 * self.ranks]
                mean.sums = {token: mean.sums[token] for token in best}
        make_room(self._store)
