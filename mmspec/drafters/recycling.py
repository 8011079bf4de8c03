"""Token Recycling: what the target named as most probable after a token before (Luo et al., arXiv 2408.08696)."""

from collections.abc import Sequence

from mmspec.drafters.table_drafter import Known, TableDrafter


class RecyclingDrafter(TableDrafter):
    """Training-free; works on any target. A row of the table, M[v], holds the `ranks` most probable tokens after token
    v the last time that the target read v after the prompt; every pass rewrites the rows of all of its nodes.
    The tree grows from the last token by M alone.

    The paper draws one static tree of 80 nodes and six levels, and ranks are what the target said at the time. That
    ranks are coupled by the noise, that the tree grows by what ranks were worth, and that rows stay for the next
    prompt were our choices.
    """

    name = "recycling"
    order = 1

    def clear(self) -> None:
        self._table: dict[int, Known] = {}

    def after(self, context: Sequence[int]) -> Known | None:
        return self._table.get(context[-1])

    def learn(self, context: Sequence[int], tokens: list[int], log_probs: list[float]) -> None:
        self._table[context[-1]] = Known(tokens, log_probs)
