"""What drafters stand on: the cost model, leftovers, loading by name."""

import json

import pytest
import torch
from tiny import TEXTS, forest, image_target, plain, prompts, text_target

from mmspec.drafters.hawk import HawkDrafter
from mmspec.drafters.heads import ResidualHead
from mmspec.drafters.jacobi import JacobiDrafter
from mmspec.drafters.stale import StaleScores
from mmspec.engine import cost
from mmspec.engine.accept import Committed
from mmspec.engine.loop import Stop, generate
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.tree import root
from mmspec.errors import MmspecError


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
def test_node_count_maximises_expected_rate(seconds: list[float], reach: list[float], count: int) -> None:
    """The node count with the most expected tokens per second; passes of 1, 2 and 4 nodes were measured."""
    assert cost.Cost([1, 2, 4], seconds, overhead=0.1).best_node_count(reach, 0.2) == count


def test_measured_once(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The curve is measured once and read from the user's cache afterwards; a damaged cache is measured again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    target, texts = image_target(), prompts()
    first = cost.measured(target, texts, "tiny", 16)
    assert first.seconds == sorted(first.seconds) and cost.cache_file().is_file()
    assert cost.measured(target, texts, "tiny", 16) == first
    cost.cache_file().write_text("{")
    assert cost.measured(target, texts, "tiny", 16).sizes == first.sizes
    (key,) = json.loads(cost.cache_file().read_text())
    sizes, seconds = first.sizes, first.seconds
    wrong: list[object] = [None, [], 3, {}, {"sizes": sizes}, {"sizes": [], "seconds": []}]
    wrong += [{"sizes": sizes, "seconds": [bad, *seconds[1:]]} for bad in (float("nan"), -1.0, 0.0, "x", None)]
    for entry in (*wrong, {"sizes": sizes[:2], "seconds": seconds[:2]}):
        cost.cache_file().write_text(json.dumps({key: entry}))
        assert cost.measured(target, texts, "tiny", 16).sizes == first.sizes, entry
    for text in ("null", "[]", "3", "[" * 100000):
        cost.cache_file().write_text(text)
        assert cost.measured(target, texts, "tiny", 16).sizes == first.sizes, text
    cost.cache_file().unlink()
    cost.cache_file().mkdir()
    assert cost.measured(target, texts, "tiny", 16).sizes == first.sizes
    assert [path.name for path in cost.cache_file().parent.iterdir()] == [cost.cache_file().name]


@pytest.mark.parametrize(("seconds", "expected"), [([1.0, 1.0], range(14, 17)), ([1.0, 64.0], range(1, 2))])
def test_jacobi_spends_what_passes_cost(seconds: list[float], expected: range) -> None:
    """Free nodes make a chain of most of its places, dear ones one guess; the tokens stay the same."""
    target, guesser, lengths = text_target(), JacobiDrafter(), []
    guesser.cost = cost.Cost([1, 64], seconds)
    done = generate(
        target,
        prompts(),
        3,
        Stop(40),
        guesser,
        seeds=5,
        on_accept=lambda state, tree, gumbel_scores, accepted: lengths.append(tree.size - 1),
    )
    assert lengths[1] in expected
    assert done.tokens == plain(target, 40)


def test_jacobi_learns_how_much_is_accepted() -> None:
    """A chain whose every guess is accepted makes the next ones longer; one that fails at once, shorter."""
    target, guesser = text_target(), JacobiDrafter(max_nodes=20, branches=0)
    guesser.cost = cost.Cost([1, 64], [1.0, 4.0])
    state = target.prefill(prompts([[1, 2]]), 40, False)
    guesser.start(target, state, SamplingOptions(), False)
    lengths = [guesser.length()]
    for accepted in (0, 20):
        for _ in range(30):
            tree = guesser.draft(state, Noise([5], target.vocabulary_size), 30)
            path = list(range(min(accepted, tree.size - 1) + 1))
            committed = Committed([path], [path], [[0] * tree.size])
            guesser.observe(state, tree, committed, torch.zeros(1, tree.size, target.vocabulary_size))
        lengths.append(guesser.length())
    assert lengths[1] < lengths[0] < lengths[2]


def test_horizontal_heads_begin_two_places_ahead() -> None:
    """The place one ahead is the target's own: a head for it would guess what is known."""
    heads = HawkDrafter(8, 5, [(0, 2), (0, 3), (1, 0)])
    assert [heads.offsets[i] for i in heads.horizontal] == [2, 3] and [heads.offsets[i] for i in heads.vertical] == [5]
    for neighbours in ([(0, 1), (0, 2)], [(0, 3), (0, 2)]):
        with pytest.raises(MmspecError, match=r"horizontal neighbours must be \(0, 2\), \(0, 3\), \.\.\. in order"):
            HawkDrafter(8, 5, neighbours)


def shift(offset: int) -> ResidualHead:
    """A head as its loss would make it, where token t is t and the feature that predicted it is the t-th unit vector:
    a head of offset o is taught to say token j + o - 1 when it reads feature j."""
    head = ResidualHead(64).double()
    head.linear.weight.detach().copy_(3 * torch.eye(64).roll(offset - 1, 0))
    return head


@pytest.mark.parametrize("count", [4, 11])
def test_heads_draft_the_places_they_are_trained_for(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After tokens 0, 1, ..., count - 1 perfect heads propose count, count + 1, count + 2, the vertical one
    included.
    """
    target = text_target(64)
    monkeypatch.setattr(target, "logits", lambda hidden, positions=None: 20 * hidden, raising=False)
    state = target.prefill(prompts(TEXTS[:1]), 80, True)
    state.features = torch.eye(64, dtype=torch.float64)[None, None]
    state.tokens, state.roots = [list(range(count))], torch.tensor([count - 1])
    heads = HawkDrafter(32, 5, [(0, 2), (0, 3), (0, 4), (1, 0)])
    heads.heads = torch.nn.ModuleList(map(shift, heads.offsets))
    heads.nodes, heads.ranks = 3, 1
    heads.start(target, state, SamplingOptions(0), False)
    committed = Committed([list(range(count))], [list(range(count))], [[0]])
    heads.observe(state, root(state.roots), committed, torch.zeros(1, 1, 64))
    tree = heads.draft(state, Noise([0], 64, greedy=True), 8)
    assert tree.tokens[0].tolist() == [count - 1, count, count + 1, count + 2]
    above = count + 1 - heads.offsets[3]  # the feature below which this position lies, if it is committed
    vertical = heads._vertical_scores[0][0, (count + 1) % heads._vertical_scores[0].shape[1]]
    assert int(vertical.argmax()) == (count + 1 if 0 <= above < count - 1 else 0)


def tree_with_scores(vocabulary: int = 5):
    """Two rows: 0 -> (1 -> 3 -> 4, 2) and a chain; the sample at node n is token n % vocabulary."""
    tree = forest([[-1, 0, 0, 1, 3], [-1, 0, 1, 2, 3]], [[0, 1, 2, 3, 4]] * 2)
    scores = torch.full((2, 5, vocabulary), -5.0)
    for node in range(5):
        scores[:, node, node % vocabulary] = 5.0
    return tree, scores


def test_stale_scores_are_the_first_node_of_each_open_depth() -> None:
    """Behind a path of two nodes, depths two and three are open in row 0; a stopped row has none."""
    tree, scores = tree_with_scores()
    stale = StaleScores(2, 5, torch.device("cpu"))
    stale.observe(tree, Committed([[0, 2], []], [[2, 2], []], [[0] * 5] * 2), scores)
    assert stale.valid.tolist() == [[True, True, False], [False, False, False]]
    assert stale.scores[0, :2].argmax(1).tolist() == [3, 4]
