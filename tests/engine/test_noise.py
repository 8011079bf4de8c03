"""Positional noise: uniform, independent, a function of (seed, position, token, use) alone."""

import pytest
import torch
from scipy import stats

from mmspec.engine.noise import AHEAD, Noise, uniforms

KNOWN = [
    [0.699420154094696, 0.7773569226264954, 0.37539002299308777, 0.6206958293914795],
    [0.7219281792640686, 0.23319488763809204, 0.905293881893158, 0.2857115864753723],
]


def numbers(seeds: list[int], positions: list[list[int]], vocabulary: int, use: int = 0) -> torch.Tensor:
    return uniforms(seeds, positions, vocabulary, use, "cpu")


def test_known_answers() -> None:
    """The first numbers of seed 0 never change: a seed written into a file means the same tokens for ever."""
    found = numbers([0], [[0, 1]], 4)[0]
    torch.testing.assert_close(found, torch.tensor(KNOWN), rtol=0, atol=0)


@pytest.mark.parametrize("use", [Noise.SAMPLE, Noise.DRAFT, Noise.ACCEPT])
def test_uniform(use: int) -> None:
    """Over tokens, positions and seeds alike the numbers are uniform on (0, 1) (Kolmogorov-Smirnov)."""
    block = numbers(list(range(20)), [list(range(20))] * 20, 200, use)
    assert float(block.min()) > 0 and float(block.max()) < 1
    for view in (block[0, 0], block[:, 0, 0], block[0, :, 0], block.flatten()):
        assert stats.kstest(view.double().numpy(), "uniform").pvalue > 1e-4


def test_independent() -> None:
    """Neighbouring tokens, positions, seeds and uses are uncorrelated, in the numbers and in their joint law."""
    block = numbers(list(range(30)), [list(range(30))] * 30, 100).double()
    other = numbers(list(range(30)), [list(range(30))] * 30, 100, Noise.DRAFT).double()
    pairs = {
        "token": (block[..., :-1], block[..., 1:]),
        "position": (block[:, :-1], block[:, 1:]),
        "seed": (block[:-1], block[1:]),
        "use": (block, other),
        "seed and position swapped": (block, block.transpose(0, 1)),
    }
    for name, (a, b) in pairs.items():
        a, b = a.flatten(), b.flatten()
        if name == "seed and position swapped":
            apart = a != b
            assert float(apart.double().mean()) > 0.95
            a, b = a[apart], b[apart]
        cells = torch.bincount((a * 8).long() * 8 + (b * 8).long(), minlength=64).numpy()
        assert stats.chisquare(cells).pvalue > 1e-5, name


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, -1), (3, 3 + 2**32), (3, 3 + 2**64 - 1)])
def test_distant_seeds_differ(first: int, second: int) -> None:
    """Negative and very large seeds are seeds like any other."""
    assert not torch.equal(numbers([first], [[0]], 16), numbers([second], [[0]], 16))


def test_order_and_batch_do_not_matter() -> None:
    """A number depends on its own seed, position and token: not on its neighbours in the call, nor on the vocabulary's
    size.
    """
    block = numbers([7, 8, 9], [[4, 5, 6]] * 3, 50)
    torch.testing.assert_close(
        numbers([9, 7], [[6, 4], [5, 6]], 50), torch.stack([block[2, [2, 0]], block[0, [1, 2]]]), rtol=0, atol=0
    )
    torch.testing.assert_close(numbers([8], [[5]], 20)[0, 0], block[1, 1, :20], rtol=0, atol=0)


def test_gumbel_law() -> None:
    """-log(-log u) of the numbers follows Gumbel(0, 1), and argmax log p + g draws from p."""
    noise = Noise(list(range(4000)), 5)
    gumbel = noise.gumbel([0] * 4000, 1)[:, 0]
    assert stats.kstest(gumbel.double().flatten().numpy(), "gumbel_r").pvalue > 1e-4
    law = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])
    counts = torch.bincount((law.log() + gumbel).argmax(1), minlength=5).numpy()
    assert stats.chisquare(counts, law.double().numpy() * 4000).pvalue > 1e-4


def test_look_ahead_equals_fresh() -> None:
    """Positions met while looking ahead keep their numbers when they come, row by row at different speeds."""
    noise = Noise([3, 4], 30)
    for first, count in (([0, 0], 4), ([1, 3], 5), ([1, 7], 2), ([6, 8], 1), ([6, 8], 6)):
        found = noise.gumbel(first, count)
        for row, start in enumerate(first):
            alone = Noise([3 + row], 30).gumbel([start], count)
            torch.testing.assert_close(found[row], alone[0], rtol=0, atol=0)


def test_memory_is_bounded() -> None:
    """Whatever was generated, no more than the look-ahead, and what was computed ahead of it, is kept."""
    noise = Noise([0, 1], 16)
    for place in range(0, 300, 3):
        noise.gumbel([place, place + 1], 6)
        assert all(len(known) <= 6 + AHEAD and min(known) >= place for known in noise._computed)
    held = {
        g.untyped_storage().data_ptr(): g.untyped_storage().nbytes()
        for known in noise._computed
        for g in known.values()
    }
    assert sum(held.values()) <= 2 * (6 + AHEAD) * 16 * 4 * 2


def test_greedy_is_silent() -> None:
    """Greedy decoding asks for no noise."""
    assert not Noise([0], 16, greedy=True).gumbel([0], 3).any()


def test_large_vocabulary() -> None:
    """At 150 000 tokens the best few never tie and the numbers stay finite."""
    gumbel = Noise(list(range(8)), 150_000).gumbel([10**6] * 8, 4)
    assert gumbel.shape == (8, 4, 150_000) and gumbel.isfinite().all()
    best = gumbel.topk(8, dim=2).values
    assert (best[..., :-1] > best[..., 1:]).all()
    assert float(best.max()) > 12


def test_fresh_noise_and_coins() -> None:
    """Noise for drafts and coins for tests differ from the sampling noise and from each other."""
    noise = Noise([5], 12)
    kinds = [noise.gumbel([2], 1)[0, 0], *(noise.fresh([[2]], use)[0, 0, 0] for use in (Noise.DRAFT, Noise.ACCEPT + 1))]
    assert all(not torch.equal(a, b) for i, a in enumerate(kinds) for b in kinds[:i])
    several = noise.fresh([[2]], Noise.DRAFT, 3)[0, 0]
    assert several.shape == (3, 12) and len(several.flatten().unique()) == 36
    coins = noise.coins([list(range(3000))], 2)[0, :, 1]
    assert stats.kstest(coins, "uniform").pvalue > 1e-4


@pytest.mark.gpu
def test_same_numbers_on_cuda() -> None:
    """The hash is integer arithmetic: every device gives the same bits."""
    torch.testing.assert_close(
        uniforms([3], [[1, 2]], 1000, 0, "cuda").cpu(), numbers([3], [[1, 2]], 1000), rtol=0, atol=0
    )
