"""Jacobi trees: runners-up of the first guess beside a chain of the target's own samples."""

import pytest
import torch
from host_reads import count_reads
from tiny import GRID, image_target, plain, prompts, text_target

from mmspec.bench.counting import count_rounds
from mmspec.drafters.jacobi import JacobiDrafter, branching, nodes_behind
from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions


def test_tree_of_a_chain_and_branches() -> None:
    """Runners-up stand beside the first guess, with copies of the guesses behind it; the chain comes first."""
    tree = branching(torch.tensor([7]), torch.tensor([[1, 2, 3]]), torch.tensor([[8, 9]]), [2, 1])
    assert tree.tokens.tolist() == [[7, 1, 2, 3, 8, 2, 9]]
    assert tree.parents.tolist() == [[-1, 0, 1, 2, 0, 4, 0]]
    assert tree.depths.tolist() == [[0, 1, 2, 3, 1, 2, 1]]
    assert (tree.height, tree.max_children) == (3, 3)


@pytest.mark.parametrize(
    ("last", "behind"), [(0, [1, 2, 3]), (2, [3]), (3, []), (4, [5, 3]), (5, [3]), (6, [2, 3])], ids=str
)
def test_nodes_behind_a_path(last: int, behind: list[int]) -> None:
    """What is left of a path's own branch, then the chain where that is deeper."""
    assert nodes_behind(last, 3, [2, 1]) == behind


@pytest.mark.parametrize(("nodes", "branches"), [(1, 0), (2, 1), (5, 1), (6, 2), (12, 3), (16, 3), (20, 4), (40, 4)])
def test_branches_take_no_more_than_half(nodes: int, branches: int) -> None:
    """Whatever the number of nodes, the tree has so many, and no path is longer than the row has room for."""
    target, guesser, seen = text_target(), JacobiDrafter(nodes, branches=4), []
    generate(
        target,
        prompts(),
        3,
        Stop(60),
        guesser,
        seeds=5,
        on_accept=lambda state, tree, gumbel_scores, accepted: seen.append((state.counts, tree)),
    )
    tree = seen[2][1]  # the first round has no runners-up yet
    assert tree.size == 1 + nodes and int((tree.parents == 0).sum(1).max()) == 1 + branches
    assert all(tree.height <= 60 - min(counts) for counts, tree in seen)


@pytest.mark.parametrize("temperature", [0, 0.7, 1])
@pytest.mark.parametrize(("kind", "guidance"), [("image", 1.0), ("image", 3.0), ("text", 1.0)])
def test_branches_keep_every_token(kind: str, guidance: float, temperature: float) -> None:
    """Equality in fp64: a batch with branches says what plain decoding of single prompts says."""
    target, length = (image_target(), GRID.tokens) if kind == "image" else (text_target(), 30)
    sampling = SamplingOptions(temperature)
    wanted = plain(target, length, sampling, guidance=guidance)
    for nodes in (2, 7, 16):
        guesser, given = JacobiDrafter(nodes, branches=3), prompts(guidance=guidance)
        assert generate(target, given, 3, Stop(length), guesser, sampling=sampling, seeds=5).tokens == wanted


def test_more_rounds_accept_with_branches() -> None:
    """Runners-up are right where the first guess was wrong: fewer rounds commit a single token."""
    target = text_target()
    single = [
        [run == 1 for row in generate(target, prompts(), 3, Stop(200), guesser, seeds=5).stats.runs for run in row]
        for guesser in (JacobiDrafter(16, branches=0), JacobiDrafter(16))
    ]
    assert sum(single[1]) / len(single[1]) < sum(single[0]) / len(single[0])


def test_chains_only() -> None:
    """A target that reads chains is given all nodes as one."""
    target, sizes = text_target(), []
    target.deterministic = True
    generate(
        target,
        prompts(),
        3,
        Stop(30),
        JacobiDrafter(7, branches=3),
        on_accept=lambda state, tree, gumbel_scores, accepted: sizes.append((tree.size, tree.height)),
    )
    assert set(sizes[1:4]) == {(8, 7)}


def test_branches_read_nothing_more() -> None:
    """Runners-up stay on the device: the accepted path is all that is read; the operations of a chain are as before."""
    target = image_target()
    for rows in (1, 3):
        given = prompts([[1, 3, 2]] * rows)
        counts, drafting = count_reads(target, JacobiDrafter(8, branches=2), given, rows, Stop(30))
        assert set(counts) == {1} and drafting == 0
    few, many = (
        count_rounds(target, prompts([[1, 3, 2]]), Stop(30), JacobiDrafter(8, branches=branches), rounds=4)[-1]
        for branches in (0, 2)
    )
    assert few.operations["draft"] < many.operations["draft"] <= few.operations["draft"] + 8


def test_rejection_knows_what_guesses_were_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """With their laws more guesses are accepted than as point masses; fresh positions are point masses."""

    def length() -> float:
        target = image_target()
        out = generate(target, prompts(), 3, Stop(60), JacobiDrafter(8), rule="rejection", seeds=3)
        return out.stats.mean_acceptance_length

    drawn = length()
    own = JacobiDrafter._drawn_from

    def points(self: JacobiDrafter, guessed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        probs = own(self, guessed, dtype)
        assert probs.shape == (len(guessed), 1 + guessed.shape[1], self.target.vocabulary_size)
        assert torch.allclose(probs.sum(2), torch.ones_like(probs.sum(2)))
        assert (probs[:, 1:].gather(2, guessed[:, :, None]) > 0).all()
        self._laws = [None] * len(guessed)
        return own(self, guessed, dtype)

    monkeypatch.setattr(JacobiDrafter, "_drawn_from", points)
    assert length() < drawn
