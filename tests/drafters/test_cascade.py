"""Drafters that are made of another drafter and a table."""

import pytest
import torch
from text_families import text_family
from tiny import TEXTS, drafter, image_target, plain, prompts, text_target

from mmspec import drafters
from mmspec.drafters.cascade import CascadeDrafter, ComposedDrafter, RasdDrafter
from mmspec.drafters.jacobi import JacobiDrafter
from mmspec.drafters.lookup import LookupDrafter
from mmspec.engine.accept import Committed
from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.tree import chain
from mmspec.errors import MmspecError
from mmspec.targets.registry import target_of

LENGTH = 40


class Watched(JacobiDrafter):
    """Jacobi that keeps the trees which it drafted and those of which it was told."""

    def start(self, *arguments) -> None:
        super().start(*arguments)
        self.drafted, self.told = [], []

    def draft(self, *arguments):
        tree = super().draft(*arguments)
        self.drafted.append(tree)
        return tree

    def observe(self, state, tree, committed, gumbel_scores) -> None:
        assert all(node < tree.size for path in committed.paths for node in path)
        assert gumbel_scores.shape[1] == tree.size
        self.told.append(tree)
        super().observe(state, tree, committed, gumbel_scores)


@pytest.mark.parametrize("kind", [CascadeDrafter, RasdDrafter])
def test_the_inner_drafter_is_told_of_its_own_tree(kind: type[ComposedDrafter]) -> None:
    target, inner = text_target(), Watched()
    out = generate(target, prompts(), 3, Stop(LENGTH), kind(inner), seeds=2)
    assert out.tokens == plain(target, LENGTH, seed=2)
    for drafted, told in zip(inner.drafted, inner.told, strict=True):
        assert torch.equal(drafted.tokens[:, : told.size], told.tokens) and drafted.size == told.size


@pytest.mark.parametrize("nodes", [3, 8, 16])
@pytest.mark.parametrize("outer", ["cascade", "rasd"])
def test_trees_keep_to_their_nodes(outer: str, nodes: int) -> None:
    """No tree has more nodes than it may, and tables have a quarter of them."""
    target = image_target()
    sizes = []
    composed = drafters.load(f"{outer}:jacobi", None, target, nodes=nodes)
    grow = composed.table.grow

    def counted(*arguments):
        tree = grow(*arguments)
        sizes.append((composed._tree.size - 1, tree.size - 1))
        return tree

    composed.table.grow = counted
    out = generate(target, prompts(TEXTS[:1]), 1, Stop(LENGTH), composed, seeds=2)
    assert out.tokens == plain(target, LENGTH, seed=2, texts=TEXTS[:1])
    assert max(own for own, _ in sizes) <= nodes - nodes // 4 and max(size for _, size in sizes) <= nodes
    assert any(size > own for own, size in sizes) or nodes == 3


def test_equal_prefixes_become_one_path() -> None:
    """No node has two children of one token."""
    target, composed = text_target(), RasdDrafter(LookupDrafter())
    grow, seen = composed.table.grow, []

    def kept(*arguments):
        seen.append(grow(*arguments))
        return seen[-1]

    composed.table.grow = kept
    for _ in range(2):
        generate(target, prompts(TEXTS[:1]), 1, Stop(LENGTH), composed, seeds=2)
    for tree in seen:
        edges = list(zip(tree.parents[0].tolist(), tree.tokens[0].tolist()))[1:]
        assert len(set(edges)) == len(edges)
    assert max(tree.size for tree in seen) > 8


def test_guesses_stand_behind_the_tables_tokens() -> None:
    """Where two of the table's nodes were accepted behind the root, the first two guesses are passed over."""
    target, inner = text_target(), JacobiDrafter(6, branches=0)
    state = target.prefill(prompts([[1, 2]]), 64, False)
    inner.start(target, state, SamplingOptions(), False)
    inner._lengths = []
    tree = chain(torch.tensor([1]), torch.tensor([[2, 3, 4, 5, 6, 7]]))
    committed = Committed([[0]], [[9, 8, 7]], [[9, 30, 31, 32, 33, 34, 35]])
    inner.observe(state, tree, committed, torch.zeros(1, 7, 40))
    assert inner._guesses == [[32, 33, 34, 35]]


def test_a_chain_is_continued_where_the_target_reads_chains_alone() -> None:
    target = target_of(text_family("Falcon-H1"))
    for kind in (CascadeDrafter, RasdDrafter):
        out = generate(target, prompts(), 3, Stop(LENGTH), kind(LookupDrafter()), seeds=2)
        assert out.tokens == plain(target, LENGTH, seed=2)


def test_many_nodes() -> None:
    """The cache has room for as many as are asked for."""
    target = text_target()
    out = generate(target, prompts(), 3, Stop(30), CascadeDrafter(LookupDrafter(), nodes=100), seeds=2)
    assert out.tokens == plain(target, 30, seed=2)


def test_trees_that_are_sampled_stay() -> None:
    target = image_target()
    composed = CascadeDrafter(drafter("hawk-path", target))
    out = generate(target, prompts(), 3, Stop(8), composed, rule="rejection", seeds=2)
    assert {len(row) for row in out.tokens} == {8}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cascade", "is made of another one: name it too, such as cascade:jacobi"),
        ("rasd:", "is made of another one: name it too, such as rasd:jacobi"),
        ("rasd:nothing", "unknown drafter 'nothing'"),
        ("cascade:stand", "adds a table to a drafter that has one"),
        ("cascade:rasd:jacobi", "adds a table to a drafter that has one"),
        ("cascade:medusa", "has no weights for this model"),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(MmspecError, match=message):
        drafters.load(name, None, text_target())
