"""Drafters that draft from tables."""

import numpy as np
import pytest
import torch
from tiny import TEXTS, plain, prompts, text_target

from mmspec.drafters.aded import AdedDrafter
from mmspec.drafters.hierarchy import HierarchyDrafter
from mmspec.drafters.recycling import RecyclingDrafter
from mmspec.drafters.stand import StandDrafter
from mmspec.drafters.table_drafter import Node, TableDrafter
from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions

TABLES = [RecyclingDrafter, AdedDrafter, StandDrafter, HierarchyDrafter]
LENGTH = 40


def ready(kind: type[TableDrafter], **options: object) -> TableDrafter:
    """A table drafter that begins with empty tables."""
    made = kind(**options)
    made._chances = {}
    made.clear()
    return made


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", TABLES)
def test_tables_outlast_a_generation(kind: type[TableDrafter], temperature: float) -> None:
    """The second time a text is generated, with the same noise, it is drafted from what was said the first time."""
    target, guesser, sampling = text_target(), kind(), SamplingOptions(temperature)
    wanted = plain(target, LENGTH, sampling, 3, TEXTS[:1])
    rounds = []
    for _ in range(2):
        out = generate(target, prompts(TEXTS[:1]), 1, Stop(LENGTH), guesser, sampling=sampling, seeds=3)
        assert out.tokens == wanted
        rounds.append(out.stats.rounds)
    assert rounds[1] <= rounds[0] < LENGTH
    assert kind is RecyclingDrafter or rounds[1] < rounds[0]


def test_another_way_of_sampling_begins_anew() -> None:
    """What was learnt at one temperature is not drafted from at another."""
    target, guesser, fresh = text_target(), StandDrafter(), StandDrafter()
    for one, temperature in ((guesser, 1.0), (guesser, 0.5), (fresh, 0.5)):
        generate(target, prompts(TEXTS[:1]), 1, Stop(9), one, sampling=SamplingOptions(temperature), seeds=3)
    assert guesser._store == fresh._store


def test_recycling_keeps_the_last_row() -> None:
    table = ready(RecyclingDrafter)
    table.learn([5], [1, 2], [-0.1, -2.0])
    table.learn([5], [3, 4], [-0.2, -3.0])
    assert table.after([9, 5]).tokens == [3, 4] and table.after([5, 9]) is None


def test_aded_moves_towards_what_is_said() -> None:
    """A row becomes what the target says again and again, and forgets what it does not."""
    table = ready(AdedDrafter)
    table.learn([4, 5], [1], [0.0])
    for _ in range(40):
        table.learn([4, 5], [2], [0.0])
    known = table.after([4, 5])
    assert known.tokens == [2] and known.log_probs == pytest.approx([0.0], abs=1e-3) and table.after([5, 5]) is None


def test_stand_takes_the_mean_after_the_longest_context() -> None:
    table = ready(StandDrafter)
    table.learn([1, 2, 3], [7, 8], [-0.5, -1.0])
    table.learn([9, 2, 3], [8], [0.0])
    assert table.after([1, 2, 3]).tokens == [7, 8] and table.after([1, 2, 3]).matched == 3
    assert table.after([0, 2, 3]).tokens == [8, 7] and table.after([0, 2, 3]).matched == 2


def test_hierarchy_asks_in_order() -> None:
    """This text, then earlier ones, then a corpus; later ones fill what is left."""
    table = ready(HierarchyDrafter, ranks=3, corpus=[[5, 1, 5, 2, 5, 1, 5, 3]])
    assert table.after([5]).tokens == [1, 3, 2] and table.after([5]).matched == 3 * 3 + 1
    table.follow([5], 9)
    known = table.after([5])
    assert known.tokens == [9, 1, 3] and known.matched == 3 + 1
    assert len(known.log_probs) == 3 and known.log_probs == sorted(known.log_probs)[::-1]


def test_hierarchy_reads_columns_of_grids() -> None:
    """Where the target has a grid, what followed the token above and the last one comes before all else."""
    table = ready(HierarchyDrafter, ranks=3)
    table._stride = 4
    for context, token in (([7, 0, 0, 5], 1), ([7, 9, 9, 5], 1), ([8, 0, 0, 5], 2)):
        table.follow(context, token)
    assert table.order == 4
    assert table.after([7, 3, 3, 5]).tokens[0] == 1 and table.after([8, 3, 3, 5]).tokens[0] == 2
    assert table.after([7, 3, 3, 5]).matched == 2 and table.after([3, 3, 3, 5]).matched == 3 + 1


def test_hierarchy_reads_the_prompt() -> None:
    """What a prompt says again is drafted at once."""
    target = text_target()
    text = [1, 3, 4, 2, 6, 7] * 3
    guesser = HierarchyDrafter()
    generate(target, prompts([text]), 1, Stop(2), guesser, seeds=0)
    assert guesser.after([4, 2]).tokens[0] == 6


def test_trees_are_cut_to_the_tokens_that_are_left() -> None:
    """Near the end a table drafts no deeper than may be committed."""
    target = text_target()
    for length in (1, 2, 3):
        out = generate(target, prompts(), 3, Stop(length), HierarchyDrafter(), seeds=4)
        assert out.tokens == plain(target, length, seed=4)


def test_tables_forget_and_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """`forget` empties them before the next generation, and a table keeps no more contexts than it may."""
    target, guesser, fresh = text_target(), StandDrafter(), StandDrafter()
    generate(target, prompts(TEXTS[:1]), 1, Stop(9), guesser, seeds=7)
    guesser.forget()
    for one in (guesser, fresh):
        generate(target, prompts(TEXTS[:1]), 1, Stop(9), one, seeds=3)
    assert guesser._store == fresh._store
    monkeypatch.setattr("mmspec.drafters.table_drafter.MOST", 5)
    generate(target, prompts(TEXTS[:1]), 1, Stop(20), guesser, seeds=3)
    assert len(guesser._store) == 5


def test_noise_ranks_candidates() -> None:
    """Equal candidates are ordered by the noise that the sample will use."""
    table = ready(StandDrafter)
    table.target = text_target()
    table.learn([5], [1, 2, 3], [-1.0, -1.0, -1.0])
    noise = np.zeros((1, 10))
    noise[0, 2] = 3.0
    tree = [Node(5, -1, 0, 1.0)]
    table._grow([5], tree, noise, 1, everywhere=False)
    assert tree[1].token == 2
    assert torch.tensor(table.chances(1)).diff().lt(0).all()
