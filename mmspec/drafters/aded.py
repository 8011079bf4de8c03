"""ADED: a tri-gram matrix that follows the target while it decodes (Liu et al., arXiv 2407.12021)."""

from collections.abc import Sequence
from math import exp, log

from mmspec.drafters.table_drafter import Known, TableDrafter, make_room

# How much of what the target says of a context replaces what was known, and the least probability that is kept.
SHARE, LEAST = 0.3, 1e-4


class AdedDrafter(TableDrafter):
    """Training-free; works on any target. A row of the matrix, P(. | u, v), follows the target's own distribution of
    the `ranks` most probable tokens every time that the target reads u and v: P <- (1 - s) P + s p, with s = `SHARE`.

    The paper fills the matrix from a corpus first and looks for drafts by a search in the manner of MCTS (PUCT), which
    weighs tokens that are probable against those that were seldom tried. Here the matrix begins empty, and the tree
    grows by what ranks were worth, as that of the other tables: our choices.
    """

    name = "aded"
    order = 2

    def clear(self) -> None:
        self._matrix: dict[tuple[int, ...], dict[int, float]] = {}

    def after(self, context: Sequence[int]) -> Known | None:
        row = self._matrix.get(tuple(context[-2:]))
        if not row:
            return None
        best = sorted(row, key=row.__getitem__, reverse=True)[: self.ranks]
        return Known(best, [log(row[token]) for token in best])

    def learn(self, context: Sequence[int], tokens: list[int], log_probs: list[float]) -> None:
        row = self._matrix.setdefault(tuple(context[-2:]), {})
        share = SHARE if row else 1.0
        for token in row:
            row[token] *= 1 - share
        for token, log_prob in zip(tokens, log_probs):
            row[token] = row.get(token, 0.0) + share * exp(log_prob)
        make_room(self._matrix)
        for token in [token for token, probability in row.items() if probability < LEAST]:
            del row[token]
