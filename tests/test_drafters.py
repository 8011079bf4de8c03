"""What drafters stand on: the cost model, leftovers, loading by name."""

import pytest
import torch
from tiny import GRID, forest, image_target, prompts

from mmspec.accept import Verdict
from mmspec.drafters import cost
from mmspec.drafters.leftovers import Leftovers


def test_cost_is_interpolated() -> None:
    """Between measured sizes in proportion, beyond them as at the end."""
    curve = cost.Cost([1, 2, 4], [1.0, 1.0, 3.0])
    assert [curve.target(nodes) for nodes in (1, 2, 3, 4, 9)] == [1.0, 1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("seconds", "reach", "count"),
    [
        ([1.0, 1.0, 1.0], [0.9, 0.5, 0.01], 3),  # nodes are free: all of them
        ([1.0, 2.0, 3.0], [0.9, 0.9, 0.9], 3),  # (1 + 2.7) / 3.3 beats 2.8 / 2.8 and 1.9 / 2.3
        ([1.0, 2.0, 3.0], [0.9, 0.1, 0.1], 1),  # 1.9 / 2.3 beats 2 / 2.8
        ([1.0, 1.0, 9.0], [0.9, 0.9, 0.9], 1),  # the second node makes the pass four times dearer
    ],
)
def test_cut_maximises_expected_rate(seconds: list[float], reach: list[float], count: int) -> None:
    """The node count with the most expected tokens per second; passes of 1, 2 and 4 nodes were measured."""
    assert cost.Cost([1, 2, 4], seconds, overhead=0.1).cut(0.2)(torch.tensor(reach)) == count


def test_measured_once(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The curve is measured once and read from the user's cache afterwards; a damaged cache is measured again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    target, texts = image_target(), prompts()
    first = cost.measured(target, texts, "tiny")
    assert first.seconds == sorted(first.seconds) and cost.cache_file().is_file()
    assert cost.measured(target, texts, "tiny") == first
    cost.cache_file().write_text("{")
    assert cost.measured(target, texts, "tiny").sizes == first.sizes


def tree_with_keys(vocabulary: int = 5):
    """Two rows: 0 -> (1 -> 3 -> 4, 2) and a chain; the sample at node n is token n % vocabulary."""
    tree = forest([[-1, 0, 0, 1, 3], [-1, 0, 1, 2, 3]], [[0, 1, 2, 3, 4]] * 2)
    keys = torch.full((2, 5, vocabulary), -5.0)
    for node in range(5):
        keys[:, node, node % vocabulary] = 5.0
    return tree, keys


def test_leftovers_are_the_first_node_of_each_open_depth() -> None:
    """Behind a path of two nodes, depths two and three are open in row 0; a stopped row has none."""
    tree, keys = tree_with_keys()
    left = Leftovers(2, 5, torch.device("cpu"))
    left.observe(tree, Verdict([[0, 2], []], [[2, 2], []]), keys)
    assert left.known.tolist() == [[True, True], [False, False]]
    assert left.keys[0].argmax(1).tolist() == [3, 4]


def test_levels_fill_what_is_not_known() -> None:
    """Known places give the best keys with their chances, the others the token above with `hope`."""
    tree, keys = tree_with_keys()
    left = Leftovers(2, 5, torch.device("cpu"), GRID.stride)
    left.observe(tree, Verdict([[0, 1], [0, 1, 2, 3]], [[1, 3], [1, 2, 3, 0]]), keys)
    committed = [[4, 3, 2, 1, 0, 1, 2], [1, 1, 1]]
    levels = left.levels(committed, 4, 2, 1.0, 0.2)
    assert [level.tokens.shape for level in levels] == [(2, 1, 2), (2, 1, 2), (2, 1, 1), (2, 1, 1)]
    best = torch.stack([level.tokens[:, 0, 0] for level in levels], 1).tolist()
    assert best[0][:2] == [3, 4] and best[0][2:] == [committed[0][9 - GRID.stride], committed[0][10 - GRID.stride]]
    assert best[1][0] == 4 and levels[0].chances[0, 0, 0] > 0.9
    assert [float(level.chances[0, 0, 0]) for level in levels[2:]] == pytest.approx([0.2, 0.2])


def test_no_leftovers_before_the_first_round() -> None:
    """An empty start: the last token, or token 0, is all there is to guess."""
    levels = Leftovers(2, 5, torch.device("cpu")).levels([[], [3]], 2, 3, 1.0, 0.5)
    assert [level.tokens[:, 0, 0].tolist() for level in levels] == [[0, 3], [0, 3]]
    assert [level.chances[:, 0, 1:].sum().item() for level in levels] == [0.0, 0.0]
