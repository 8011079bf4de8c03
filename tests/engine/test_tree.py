"""Draft trees: ancestors, chains, padding, and the growth of the most probable tree."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import children, forest, random_parents

from mmspec.engine.tree import Candidates, DraftTree, build_tree, chain, root


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
    """`ancestors` is the naive walk to the root; padding is nobody's ancestor; depths count the walk."""
    found = tree.ancestors
    for row, parents in enumerate(tree.parents.tolist()):
        real = [node for node, parent in enumerate(parents) if parent >= 0 or node == 0]
        for node in real:
            path = walk(parents, node)
            assert set(found[row, node].nonzero().flatten().tolist()) == path
            assert int(tree.depths[row, node]) == len(path) - 1
        for node in set(range(tree.size)) - set(real):
            assert found[row, node].any() and not found[row, real, node].any()


def test_root_and_chain() -> None:
    """The empty draft is a root alone; a chain pads rows that have fewer guesses."""
    assert root(torch.tensor([4, 5])).parents.tolist() == [[-1], [-1]] and root(torch.tensor([4])).height == 0
    tree = chain(torch.tensor([7, 8]), torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([3, 1]))
    assert tree.tokens.tolist() == [[7, 1, 2, 3], [8, 4, 5, 6]]
    assert tree.parents.tolist() == [[-1, 0, 1, 2], [-1, 0, -1, -1]]
    assert tree.depths.tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]
    assert tree.height == 3 and children(tree)[1] == [[1], [], [], []]


def table(seed: int, vocabulary: int):
    """Probabilities of each token after each path, the same whenever they are asked for."""

    def probs(path: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash((seed, *path)) % 2**31)
        return torch.rand(vocabulary, generator=generator).mul(3).softmax(0)

    return probs


def built(probs, rows: int, ranks: int, height: int, beam: int, max_nodes: int) -> DraftTree:
    """build_tree() over `probs`, which may see the whole path."""
    paths: list[list[tuple[int, ...]]] = [[()] for _ in range(rows)]

    def expand(depth: int, tokens: torch.Tensor, parent_index: torch.Tensor) -> Candidates:
        if depth:
            for row in range(rows):
                pairs = zip(parent_index[row], tokens[row])
                paths[row] = [(*paths[row][int(parent)], int(token)) for parent, token in pairs]
        level = [torch.stack([probs((row, *path)) for path in paths[row]]) for row in range(rows)]
        best = torch.stack(level).topk(ranks, dim=2)
        return Candidates(best.indices, best.values)

    return build_tree(torch.zeros(rows, dtype=torch.long), expand, height, beam, max_nodes)


def read(tree: DraftTree, row: int) -> list[tuple[int, ...]]:
    """Each node as the tokens of its path; parents come first, and the height is right."""
    tokens, parents = tree.tokens[row].tolist(), tree.parents[row].tolist()
    paths: list[tuple[int, ...]] = [()]
    for node in range(1, tree.size):
        assert 0 <= parents[node] < node
        paths.append((*paths[parents[node]], tokens[node]))
        assert int(tree.depths[row, node]) == len(paths[node]) <= tree.height
    return paths


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 12))
def test_the_most_probable_nodes_are_kept(seed: int, rows: int, height: int, budget: int) -> None:
    """With a beam that cuts nothing, the tree is the brute-force best of all paths, sorted, connected, within
    budget.
    """
    vocabulary = 3
    probs = table(seed, vocabulary)
    tree = built(probs, rows, vocabulary, height, vocabulary**height, budget)
    for row in range(rows):
        reach = {(): 1.0}
        for _ in range(height):
            for path, mass in list(reach.items()):
                reach.update({(*path, token): mass * float(probs((row, *path))[token]) for token in range(vocabulary)})
        del reach[()]
        best = sorted(reach, key=lambda path: reach[path], reverse=True)[:budget]
        paths = read(tree, row)[1:]
        assert len(set(paths)) == len(paths) == min(budget, len(reach))
        assert set(paths) == set(best)
        expected = torch.tensor([1.0, *(reach[path] for path in paths)])
        torch.testing.assert_close(tree.path_probs[row], expected)
        assert tree.path_probs[row].tolist() == sorted(tree.path_probs[row].tolist(), reverse=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 20))
def test_a_narrow_beam(seed: int, ranks: int, beam: int, height: int, budget: int) -> None:
    """Any beam, rank and budget give a connected tree whose siblings differ, and so does every first part of it."""
    tree = built(table(seed, 5), 2, ranks, height, beam, budget)
    assert tree.size <= budget + 1 and tree.height <= height
    for nodes in range(1, tree.size + 1):
        part = tree.first(nodes, int(tree.depths[:, :nodes].max()))
        for row in range(2):
            assert len(set(read(part, row))) == part.size == nodes


def test_no_level_leaves_the_root() -> None:
    assert built(table(0, 4), 2, 4, 0, 4, 8).size == 1


@pytest.mark.parametrize("budget", [1, 2, 3, 5])
def test_probabilities_that_are_no_numbers(budget: int) -> None:
    """A drafter whose estimate is NaN costs speed, never a connected tree."""
    probs = table(1, 3)
    weights = torch.tensor([1.0, torch.nan, 1.0])
    read(built(lambda path: probs(path) * weights if len(path) == 2 else probs(path), 1, 3, 3, 27, budget), 0)
