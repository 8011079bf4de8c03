"""Hierarchy Drafting: tables of this text, of earlier ones and of a corpus, in that order (Cho et al., arXiv
2502.05609).
"""

from collections.abc import Sequence
from math import log

from mmspec.drafters.table_drafter import Known, TableDrafter, make_room
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.targets.base import Target


class NGrams:
    """How often each token came after contexts of `shortest` to `longest` tokens."""

    def __init__(self, longest: int, shortest: int = 1):
        self.longest, self.shortest = longest, shortest
        self.counts: dict[tuple[int, ...], dict[int, int]] = {}

    def add(self, context: Sequence[int], token: int) -> None:
        """A token came after a context."""
        for length in range(self.shortest, min(self.longest, len(context)) + 1):
            row = self.counts.setdefault(tuple(context[-length:]), {})
            row[token] = row.pop(token, 0) + 1  # the latest last
        make_room(self.counts)

    def merge(self, other: "NGrams") -> None:
        """Add another's counts."""
        for context, theirs in other.counts.items():
            row = self.counts.setdefault(context, {})
            for token, count in theirs.items():
                row[token] = row.pop(token, 0) + count
        make_room(self.counts)

    def after(self, context: Sequence[int], ranks: int) -> Known | None:
        """What came after the longest context that is known, most often first, and of equals the latest."""
        for length in range(min(self.longest, len(context)), self.shortest - 1, -1):
            if row := self.counts.get(tuple(context[-length:])):
                total = sum(row.values())
                best = sorted(reversed(row), key=row.__getitem__, reverse=True)[:ranks]
                return Known(best, [log(row[token] / total) for token in best], length)
        return None


class HierarchyDrafter(TableDrafter):
    """Training-free; works on any target. Three tables of n-grams are asked in the order of their locality until there
    are `ranks` candidates: the text at hand with its prompt, earlier texts with theirs, and a `corpus` (sequences of
    tokens), if one is given. On grids another one comes before them, of what followed the token above and the last one.

    The paper keeps chains of tokens after the last one or two and verifies up to seven of them; here tables grow a
    tree, what a candidate is worth is learnt for each table and length of the context, and grids have a table of their
    own: our choices.
    """

    name = "hierarchy"
    reads_text = True

    def __init__(
        self,
        ranks: int = 8,
        depth: int = 8,
        nodes: int | None = None,
        longest: int = 3,
        corpus: Sequence[Sequence[int]] = (),
    ):
        super().__init__(ranks, depth, nodes)
        self.longest, self._stride = longest, 0
        self._corpus = NGrams(longest)
        for text in corpus:
            for end in range(1, len(text)):
                self._corpus.add(text[max(0, end - longest) : end], text[end])

    @property
    def order(self) -> int:
        return max(self.longest, self._stride)

    def clear(self) -> None:
        self._text, self._before, self._columns = NGrams(self.longest), NGrams(self.longest), NGrams(2, 2)

    def start(self, target: Target, state: State, sampling: SamplingOptions, needs_draft_probs: bool) -> None:
        self._stride = target.grid.stride if target.grid else 0
        super().start(target, state, sampling, needs_draft_probs)
        self._before.merge(self._text)
        self._text = NGrams(self.longest)

    def after(self, context: Sequence[int]) -> Known | None:
        found: dict[int, float] = {}
        matched = 0
        for place, table in enumerate((self._columns, self._text, self._before, self._corpus)):
            known = table.after(self._column(context) if table is self._columns else context, self.ranks)
            if known is None:
                continue
            matched = matched or place * max(2, self.longest) + known.matched
            # What a later table knows comes after what earlier ones know.
            worst = min(found.values(), default=0.0)
            for token, log_prob in zip(known.tokens, known.log_probs):
                found.setdefault(token, worst + log_prob)
            if len(found) >= self.ranks:
                break
        if not found:
            return None
        return Known(list(found)[: self.ranks], list(found.values())[: self.ranks], matched)

    def _column(self, context: Sequence[int]) -> Sequence[int]:
        """The token above the next one and the last one, nothing where there is no grid."""
        return (context[-self._stride], context[-1]) if 0 < self._stride <= len(context) else ()

    def follow(self, context: Sequence[int], token: int) -> None:
        self._text.add(context, token)
        self._columns.add(self._column(context), token)
