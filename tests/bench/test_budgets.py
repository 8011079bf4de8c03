"""The budgets of a round, as they are kept today: tighten the numbers as drafters get better."""

import pytest
from tiny import DRAFTERS, drafter, image_target, prompts, text_target
from tiny_vlm import built

from mmspec.bench.counting import Counting, count_rounds
from mmspec.drafters.vadusa import VadusaDrafter
from mmspec.engine.loop import Stop

# Host reads of a round: those of drafting (the choice of a tree's width), and all.
DRAFT_READS = dict.fromkeys(DRAFTERS, 1) | {"none": 0, "lookup": 0, "jacobi": 0, "msd": 1}
READS = 2


def rounds(name: str, rows: int = 1, **options: object) -> list[Counting]:
    target = text_target() if name == "msd" else image_target()
    guesser = built() if name == "msd" else drafter(name, target)
    for key, value in options.items():
        setattr(guesser, key, value)
    return count_rounds(target, prompts([[1, 3, 2]] * rows), Stop(40), guesser, rounds=4)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", DRAFT_READS)
def test_reads(name: str, rows: int) -> None:
    counts = rounds(name, rows)
    assert counts and max(each.reads["draft"] for each in counts) == DRAFT_READS[name]
    assert max(sum(each.reads.values()) for each in counts) <= READS
    assert all(each.reads["target"] == 0 for each in counts)


@pytest.mark.parametrize(("rank", "most"), [(0, 20), (4, 46)])
@pytest.mark.parametrize("heads", [4, 12])
def test_operations_of_heads(heads: int, rank: int, most: int) -> None:
    """A draft of a chain's or a lattice's heads, whatever their depth, in rounds that find their noise drawn."""
    target = text_target()
    guesser = VadusaDrafter(target.hidden_size, heads, vocabulary=target.vocabulary_size, rank=rank, inner=8)
    counts = count_rounds(target, prompts([[1, 3, 2]]), Stop(40), guesser.to(target.dtype).eval(), rounds=4)
    assert min(each.operations["draft"] for each in counts) <= most


@pytest.mark.parametrize("name", ["medusa", "vadusa", "hawk"])
def test_deeper_heads_draft_in_no_more_operations(name: str) -> None:
    """All horizontal heads take no more than two, in rounds that find their noise drawn (others draw some ahead)."""
    few, many = ({each.operations["draft"] for each in rounds(name, **o)} for o in ({"horizontal": [0, 1]}, {}))
    assert min(many) <= min(few)
