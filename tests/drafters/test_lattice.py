"""The lattice: the best tree of candidates that a table joins, against enumeration, and heads that have one."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import drafter, image_target, text_target
from torch import Tensor

from mmspec.drafters.examples import Example
from mmspec.drafters.lattice import Node, PairTable, RootReader, lattice_paths, product_paths, tree_of
from mmspec.drafters.medusa import MedusaDrafter
from mmspec.drafters.release import Verifier
from mmspec.drafters.vadusa import VadusaDrafter
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.tree import Candidates
from mmspec.errors import MmspecError

VOCABULARY = 6


def paths(rows: list[list[Node]], row: int) -> dict[tuple[int, ...], float]:
    """The probability of every node of a row's tree but the root, by its path of tokens."""
    tree = tree_of(torch.zeros(len(rows), dtype=torch.long), rows)
    found: list[tuple[int, ...]] = [()]
    for node in range(1, tree.size):
        parent = int(tree.parents[row, node])
        assert 0 <= parent < node and tree.depths[row, node] == tree.depths[row, parent] + 1
        found.append((*found[parent], int(tree.tokens[row, node])))
    assert len(set(found)) == len(found)
    assert tree.height == tree.depths.max() and tree.size == 1 + len(rows[row])
    return dict(zip(found[1:], (node[-1] for node in rows[row]), strict=True))


def lattice(seed: int, rows: int, height: int, ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(rows, height, VOCABULARY, generator=draw, dtype=torch.float64)
    pairs = torch.randn(rows, height - 1, ranks, ranks, generator=draw, dtype=torch.float64)
    return scores, pairs, scores.topk(ranks, dim=2).indices


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 4), st.integers(1, VOCABULARY - 1), st.integers(1, 30))
def test_the_best_paths(seed: int, rows: int, height: int, ranks: int, budget: int) -> None:
    """Those that enumeration finds, with the probabilities that the definition gives."""
    scores, pairs, chosen = lattice(seed, rows, height, ranks)
    tree = lattice_paths(scores, pairs, chosen, budget)
    for row in range(rows):
        reach: dict[tuple[int, ...], float] = {}
        for depth in range(1, height + 1):
            for path in product(range(ranks), repeat=depth):
                probability = 1.0
                for level, rank in enumerate(path):
                    weights = scores[row, level].clone()
                    if level:
                        weights[chosen[row, level]] += pairs[row, level - 1, path[level - 1]]
                    probability *= float(weights.softmax(0)[chosen[row, level, rank]])
                reach[tuple(int(chosen[row, level, rank]) for level, rank in enumerate(path))] = probability
        best = sorted(reach, key=lambda path: reach[path], reverse=True)[:budget]
        found = paths(tree, row)
        assert list(found) == best
        assert [found[path] for path in best] == pytest.approx([reach[path] for path in best], rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 4), st.integers(1, VOCABULARY), st.integers(1, 30))
def test_without_a_table(seed: int, rows: int, height: int, ranks: int, budget: int) -> None:
    """Paths of candidates that follow all others alike are the lattice's whose table says nothing."""
    scores, pairs, chosen = lattice(seed, rows, height, ranks)
    best, tokens = scores.softmax(2).topk(ranks, dim=2)
    found = product_paths(Candidates(tokens, best), budget)
    expected = lattice_paths(scores, torch.zeros_like(pairs), chosen, budget)
    for row in range(rows):
        of_tokens = paths(found, row)
        assert set(of_tokens) == set(paths(expected, row))
        assert of_tokens == pytest.approx(paths(expected, row), rel=1e-4)


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf, torch.inf])
def test_scores_that_are_no_numbers(bad: float) -> None:
    """They cost speed, never a connected tree."""
    scores, pairs, chosen = lattice(5, 1, 3, 3)
    scores[0, 1] = bad
    tree = lattice_paths(scores, pairs, chosen, 20)
    assert len(paths(tree, 0)) == 20 and torch.isfinite(torch.tensor(list(paths(tree, 0).values()))).all()


def test_pairs_are_the_rows_of_the_table() -> None:
    table = PairTable(VOCABULARY, 3)
    torch.nn.init.normal_(table.after.weight)
    before, after = torch.tensor([[1, 4], [0, 0]]), torch.tensor([[2, 3, 5], [1, 0, 4]])
    whole = table(before)
    expected = torch.stack([whole[row][:, after[row]] for row in range(2)])
    torch.testing.assert_close(table.pairs(before, after), expected)


def test_untrained_tables_change_nothing() -> None:
    reader, table = RootReader(8, VOCABULARY, 4, 3), PairTable(VOCABULARY, 3)
    tokens = torch.tensor([1, 2])
    assert not reader(torch.randn(2, 8), tokens).any() and not table(tokens).any()


def test_the_loss_trains_all_of_it() -> None:
    """Heads, reader and table have gradients, and predictions are those of the path's tokens."""
    target = text_target()
    heads = VadusaDrafter(target.hidden_size, heads=3, vocabulary=target.vocabulary_size, rank=4, inner=8)
    torch.nn.init.normal_(heads.table.after.weight)  # type: ignore[union-attr]
    torch.nn.init.normal_(heads.reader.down.weight)  # type: ignore[union-attr]
    tokens = torch.arange(12) % target.vocabulary_size
    features = torch.randn(1, 12, target.hidden_size, dtype=target.dtype)
    heads = heads.to(target.dtype)
    heads.loss(target, [Example(tokens, features)])["loss"].backward()
    idle = {name for name, weight in heads.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert idle <= {"weights"}
    other = tokens.clone()
    other[6] = (other[6] + 1) % target.vocabulary_size
    heads.float().eval()
    before, after = (heads.predictions(target, Example(row, features.float())) for row in (tokens, other))
    for depth, (one, two) in enumerate(zip(before, after, strict=True)):
        changed = one.positions[(one.log_q != two.log_q).any(1)].tolist()
        # Token 6 is the one before position 7, and the root of the draft that predicts 7 + depth.
        assert changed == sorted({7, 7 + depth})


def test_sharpness_is_in_nats_of_logits() -> None:
    """At half the temperature log q is twice as large, and what is made of it is the same."""
    target = image_target()
    heads = drafter("vadusa", target)
    logits, noise = torch.randn(1, 2, 9), torch.randn(1, 2, 9)
    made = []
    for temperature in (1.0, 0.5):
        heads.sampling = SamplingOptions(temperature)
        made.append(heads.sharpen(logits / temperature, noise / temperature, slice(2)))  # type: ignore[attr-defined]
    torch.testing.assert_close(*made)


def test_medusas_files_have_no_table() -> None:
    target = image_target()
    heads = MedusaDrafter(target.hidden_size, 0, [(0, 2), (0, 3)], vocabulary=target.vocabulary_size, rank=2)
    with pytest.raises(MmspecError, match="table"):
        heads.to_released(target, Verifier("model", [], 9, 64))
