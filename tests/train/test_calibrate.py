"""Calibration: the pair that best predicts what was sampled, at roots that a draft can reach."""

import torch

from mmspec.drafters.medusa import MedusaDrafter
from mmspec.train.calibrate import fit_calibration


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
