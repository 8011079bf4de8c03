"""Calibration: the pair that best predicts what was sampled, at roots that a draft can reach."""

import pytest
import torch

from mmspec.drafters.medusa import MedusaDrafter
from mmspec.train.calibrate import BOUNDS, cross_entropy, fit_calibration, fit_pair


def test_coupling_is_what_the_target_makes_of_the_noise() -> None:
    """Where the drafter knows the target's p the noise decides (1); where the target is certain of what it does not,
    nothing (0).
    """
    generator = torch.Generator().manual_seed(0)
    log_p = torch.log_softmax(torch.randn(512, 64, generator=generator), -1)
    noise = -torch.log(-torch.log(torch.rand(512, 64, generator=generator)))
    uncertain = (log_p + noise).argmax(1)
    certain = torch.multinomial(log_p.exp(), 1, generator=generator)[:, 0]
    drafter = MedusaDrafter(8, 4, [(0, 2), (0, 3)])
    roots = torch.arange(512)
    drafter.ranks = 64  # no path is lost
    accuracies = fit_calibration(drafter, [[(0, roots, log_p, noise, sampled)] for sampled in (uncertain, certain)])
    assert drafter.coupling == [1.0, 0.0]
    assert accuracies[0][0] == 1.0 and abs(sum(accuracies[1]) - 1) < 0.01


def test_only_reachable_roots_count() -> None:
    """A root whose sampled token was no candidate at depth 0 does not count at depth 1."""
    drafter = MedusaDrafter(8, 4, [(0, 2), (0, 3)])
    drafter.ranks = 1
    log_q = torch.log_softmax(torch.tensor([[3.0, 0.0], [3.0, 0.0]]), -1)
    sampled = torch.tensor([0, 1])
    observations = (0, torch.tensor([4, 5]), log_q, torch.zeros(2, 2), sampled)
    accuracies = fit_calibration(drafter, [[observations], [observations]])
    assert accuracies[0][0] == 0.5 and accuracies[1][0] == 1.0


@pytest.mark.parametrize("error", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("sharpened", [0.5, 1.0, 3.0])
def test_the_pair_is_the_best_of_a_grid(error: float, sharpened: float) -> None:
    """Where drafters are sure of too much or of too little, beyond the bounds and within, no pair of a fine grid
    predicts better what was sampled.
    """
    generator = torch.Generator().manual_seed(0)
    log_p = torch.log_softmax(2 * torch.randn(96, 24, generator=generator), -1)
    noise = -torch.log(-torch.log(torch.rand(96, 24, generator=generator)))
    sampled = (log_p + noise).argmax(1)
    log_q = torch.log_softmax(sharpened * (log_p + error * torch.randn(96, 24, generator=generator)), -1)

    def loss(share: float, beta: float) -> float:
        return float(cross_entropy(beta * (log_q + share * noise), sampled)) / len(sampled)

    pairs = torch.cartesian_prod(torch.linspace(0, 1, 21), torch.linspace(*BOUNDS, 37)).tolist()
    losses = [loss(*pair) for pair in pairs]
    share, beta = fit_pair(log_q, noise, sampled)
    assert 0 <= share <= 1 and BOUNDS[0] <= beta <= BOUNDS[1]
    assert loss(share, beta) < min(losses) + 1e-4 < max(losses)


def test_the_pair_without_noise() -> None:
    """Greedy sequences have no noise; the sharpness is still that of the grid."""
    generator = torch.Generator().manual_seed(1)
    log_q = torch.log_softmax(torch.randn(96, 24, generator=generator), -1)
    sampled = torch.multinomial((0.7 * log_q).softmax(-1), 1, generator=generator)[:, 0]
    _, beta = fit_pair(log_q, torch.zeros(96, 24), sampled)
    losses = {b: float(cross_entropy(b * log_q, sampled)) for b in torch.linspace(*BOUNDS, 361).tolist()}
    assert beta == pytest.approx(min(losses, key=losses.__getitem__), abs=0.01) and 0.3 < beta < 1.1
