"""Calibration: how probable it is that a drafter's candidate is accepted, at each depth."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmspec.drafters.base import TrainedDrafter
from mmspec.drafters.examples import Example
from mmspec.engine.noise import Noise
from mmspec.targets.base import Target

# Pairs (lambda, beta) that calibration tries.
CALIBRATION_GRID = torch.cartesian_prod(torch.linspace(0, 1, 11), torch.linspace(0.4, 2.0, 17))

# One sequence at one depth: its number, roots, log q, noise there, and the tokens that were sampled, as numbers in the
# drafting vocabulary (-1: none of it).
Observations = tuple[int, Tensor, Tensor, Tensor, Tensor]


def calibration_nll(log_q: Tensor, noise: Tensor, sampled: Tensor) -> Tensor:
    """Cross entropy of softmax(beta (log q + lambda g)) against what was sampled, for every pair of
    `CALIBRATION_GRID`.
    """
    losses = [
        -torch.log_softmax(beta * (log_q + share * noise), -1).gather(1, sampled[:, None]).sum()
        for share, beta in CALIBRATION_GRID
    ]
    return torch.stack(losses).cpu()


def fit_calibration(drafter: TrainedDrafter, depths: Sequence[Sequence[Observations]]) -> list[list[float]]:
    """Give each depth of the drafter the pair that best predicts what was sampled; returns accuracies by depth and
    rank.

    An accuracy is how often the i-th candidate was right. Both are taken at roots whose sampled tokens were candidates
    at all depths before, since no other path gets there; where no root is left, the pair of the depth before stands.
    """
    reachable: dict[int, set[int]] = {}
    accuracies, best = [], len(CALIBRATION_GRID) - 1
    for depth, observations in enumerate(depths):
        losses, right, count = torch.zeros(len(CALIBRATION_GRID)), torch.zeros(drafter.ranks), 0
        reached = []
        for row, roots, log_q, noise, sampled in observations:
            mask = [not depth or root in reachable.get(row, ()) for root in roots.tolist()]
            counted = torch.tensor(mask, dtype=torch.bool, device=roots.device)
            log_q, noise, sampled = log_q[counted], noise[counted], sampled[counted]
            reached.append((row, roots[counted], log_q, noise, sampled))
            drafted = sampled >= 0
            losses += calibration_nll(log_q[drafted], noise[drafted], sampled[drafted])
        best = int(losses.argmin()) if losses.any() else best
        drafter.coupling[depth], drafter.beta[depth] = (round(float(x), 3) for x in CALIBRATION_GRID[best])
        reachable = {}
        for row, roots, log_q, noise, sampled in reached:
            scores = log_q + drafter.coupling[depth] * noise
            hit = scores.topk(min(drafter.ranks, scores.shape[1]), dim=1).indices == sampled[:, None]
            right[: hit.shape[1]] += hit.sum(0).cpu()
            count += len(roots)
            reachable[row] = set(roots[hit.any(1)].tolist())
        accuracies.append([round(x, 4) for x in (right / max(1, count)).tolist()])
    return accuracies


@torch.inference_mode()
def observe(drafter: TrainedDrafter, target: Target, examples: Sequence[Example]) -> list[list[Observations]]:
    """What the drafter predicts along sequences at each depth, with the noise that they were sampled with (none if
    greedy).
    """
    depths: list[list[Observations]] = [[] for _ in drafter.beta]
    drafted = drafter.drafted_tokens(target)
    index = torch.full((target.vocabulary_size,), -1, device=target.device)
    tokens = torch.arange(target.vocabulary_size, device=target.device) if drafted is None else drafted
    index[tokens] = torch.arange(len(tokens), device=target.device)
    for row, example in enumerate(examples):
        noise = Noise([max(0, example.seed)], target.vocabulary_size).gumbel([0], len(example.tokens))[0]
        noise = noise.to(target.device) * (example.seed >= 0)
        for depth, predictions in enumerate(drafter.predictions(target, example)):
            positions, log_q = predictions.positions, predictions.log_q
            gumbel = noise[positions][:, tokens[: log_q.shape[1]]]
            sampled = index[example.tokens.to(target.device)[positions]]
            depths[depth].append((row, positions - depth, log_q, gumbel, sampled))
    return depths


def calibrate(drafter: TrainedDrafter, target: Target, sampled: Sequence[Example], greedy: Sequence[Example]) -> None:
    """Coupling and sharpness of each depth for sampled sequences, and the sharpness for greedy ones if the drafter has
    one.
    """
    if drafter.calibrates_greedy and greedy:
        fit_calibration(drafter, observe(drafter, target, greedy))
        drafter.greedy = list(drafter.beta)
    drafter.calibrated(fit_calibration(drafter, observe(drafter, target, sampled)))
