"""Draft trees: ancestors, chains, padding, and the growth of the most probable tree."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import forest, random_parents

from mmspec.engine.tree import Candidates, DraftTree, chain, grow, product, root


def forests() -> st.SearchStrategy[DraftTree]:
    """Ragged batches of random trees."""

    def build(seed: int, sizes: list[int]) -> DraftTree:
        rng = random.Random(seed)
        parents = [random_parents(rng, size) for size in sizes]
        return forest(parents, [[rng.randrange(9) for _ in row] for row in parents])

    return st.builds(build, st.integers(0, 10**6), st.lists(st.integers(1, 17), min_size=1, max_size=4))


def walk(parents: list[int], node: int) -> set[int]:
    """A node and all nodes above it."""
    path = {node}
    while parents[node] >= 0:
        node = parents[node]
        path.add(node)
    return path


@settings(max_examples=150, deadline=None)
@given(forests())
def test_ancestors(tree: DraftTree) -> None:
    """ancestors() is the naive walk to the root; padding is nobody's ancestor; depths count the walk."""
    found = tree.ancestors()
    for row, parents in enumerate(tree.parents.tolist()):
        real = [node for node, parent in enumerate(parents) if parent >= 0 or node == 0]
        for node in real:
            path = walk(parents, node)
            assert set(found[row, node].nonzero().flatten().tolist()) == path
            assert int(tree.depths[row, node]) == len(path) - 1
        for node in set(range(tree.size)) - set(real):
            assert found[row, node].any() and not found[row, real, node].any()


@settings(max_examples=50, deadline=None)
@given(forests())
def test_children(tree: DraftTree) -> None:
    """children() inverts parents, in order, and leaves padding out."""
    for row, below in enumerate(tree.children()):
        parents = tree.parents[row].tolist()
        assert [sorted(nodes) for nodes in below] == below
        assert {(parent, node) for parent, nodes in enumerate(below) for node in nodes} == {
            (p, n) for n, p in enumerate(parents) if p >= 0
        }


def test_root_and_chain() -> None:
    """The empty draft is a root alone; a chain pads rows that have fewer guesses."""
    assert root(torch.tensor([4, 5])).parents.tolist() == [[-1], [-1]] and root(torch.tensor([4])).height == 0
    tree = chain(torch.tensor([7, 8]), torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([3, 1]))
    assert tree.tokens.tolist() == [[7, 1, 2, 3], [8, 4, 5, 6]]
    assert tree.parents.tolist() == [[-1, 0, 1, 2], [-1, 0, -1, -1]]
    assert tree.depths.tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]
    assert tree.height == 3 and tree.children()[1] == [[1], [], [], []]


def table(seed: int, vocabulary: int):
    """Chances of each token after each path, the same whenever they are asked for."""

    def chances(path: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash((seed, *path)) % 2**31)
        return torch.rand(vocabulary, generator=generator).mul(3).softmax(0)

    return chances


def fixed(nodes: int):
    """A node budget, whatever the chances."""
    return lambda reach: nodes


def grown(law, rows: int, ranks: int, height: int, beam: int, cut, worth=lambda depth, mass: True) -> DraftTree:
    """grow() over `law`, which may see the whole path."""
    paths: list[list[tuple[int, ...]]] = [[()] for _ in range(rows)]

    def expand(depth: int, tokens: torch.Tensor, places: torch.Tensor) -> Candidates:
        if depth:
            for row in range(rows):
                paths[row] = [(*paths[row][int(place)], int(token)) for place, token in zip(places[row], tokens[row])]
        found = torch.stack([torch.stack([law((row, *path)) for path in paths[row]]) for row in range(rows)]).topk(
            ranks, dim=2
        )
        return Candidates(found.indices, found.values)

    return grow(torch.zeros(rows, dtype=torch.long), expand, height, beam, worth, cut)


def read(tree: DraftTree, row: int) -> list[tuple[int, ...]]:
    """Each node as the tokens of its path."""
    tokens, parents = tree.tokens[row].tolist(), tree.parents[row].tolist()
    paths: list[tuple[int, ...]] = [()]
    for node in range(1, tree.size):
        assert 0 <= parents[node] < node
        paths.append((*paths[parents[node]], tokens[node]))
        assert int(tree.depths[row, node]) == len(paths[node])
    return paths


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 12))
def test_grow_keeps_the_most_probable_nodes(seed: int, rows: int, height: int, budget: int) -> None:
    """With a beam that cuts nothing, the tree is the brute-force best of all paths, connected and within budget."""
    vocabulary = 3
    law = table(seed, vocabulary)
    tree = grown(law, rows, vocabulary, height, beam=vocabulary**height, cut=fixed(budget))
    for row in range(rows):
        reach = {(): 1.0}
        for _ in range(height):
            for path, mass in list(reach.items()):
                reach.update({(*path, token): mass * float(law((row, *path))[token]) for token in range(vocabulary)})
        del reach[()]
        best = sorted(reach, key=lambda path: reach[path], reverse=True)[:budget]
        paths = read(tree, row)[1:]
        assert len(set(paths)) == len(paths) == min(budget, len(reach))
        assert set(paths) == set(best)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 12))
def test_product_is_what_grow_makes(seed: int, rows: int, ranks: int, height: int, budget: int) -> None:
    """Where all nodes of a level have the same children, whatever path led to them."""
    law = table(seed, 5)
    found = [[law((row, depth)).topk(ranks) for depth in range(height)] for row in range(rows)]
    tokens, chances = ([[getattr(one, part) for one in row] for row in found] for part in ("indices", "values"))
    levels = Candidates(
        torch.stack([torch.stack(row) for row in tokens]), torch.stack([torch.stack(row) for row in chances])
    )
    tree = product(torch.zeros(rows, dtype=torch.long), levels, 64, fixed(budget))
    alike = grown(lambda path: law((path[0], len(path) - 1)), rows, ranks, height, ranks**4, fixed(budget))
    assert tree.size == alike.size and tree.tokens.dtype == tree.parents.dtype == tree.depths.dtype == torch.long
    for row in range(rows):
        assert set(read(tree, row)) == set(read(alike, row))
    assert product(torch.zeros(rows, dtype=torch.long), levels, 3, fixed(budget)).size == 1 + min(
        3, budget, alike.size - 1
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 20))
def test_grow_with_a_narrow_beam(seed: int, ranks: int, beam: int, height: int, budget: int) -> None:
    """Any beam, rank and budget give a connected tree whose siblings differ."""
    tree = grown(table(seed, 5), 2, ranks, height, beam, fixed(budget))
    assert tree.size <= budget + 1 and tree.height <= height
    for row in range(2):
        assert len(set(read(tree, row))) == tree.size


def test_grow_stops_when_it_does_not_pay() -> None:
    """`worth` ends the growth; `cut` sees the sorted chances; no level at all leaves the root."""
    law = table(0, 4)
    assert grown(law, 1, 4, 5, 4, fixed(50), worth=lambda depth, mass: depth < 2).height == 2
    assert (
        grown(law, 1, 4, 5, 4, cut=lambda reach: int((reach > 0.05).sum())).size
        < grown(law, 1, 4, 5, 4, cut=fixed(50)).size
    )
    assert grown(law, 2, 4, 0, 4, fixed(8)).size == 1


@pytest.mark.parametrize("budget", [1, 2, 3, 5])
def test_grow_survives_chances_that_are_no_numbers(budget: int) -> None:
    """A drafter whose estimate is NaN costs speed, never a connected tree."""
    law = table(1, 3)
    broken = lambda path: law(path) * torch.tensor([1.0, torch.nan, 1.0]) if len(path) == 2 else law(path)  # noqa: E731
    read(grown(broken, 1, 3, 3, 27, fixed(budget)), 0)
