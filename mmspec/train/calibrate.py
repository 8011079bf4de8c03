"""Calibration: how probable it is that a drafter's candidate is accepted, at each depth."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmspec.drafters.base import TrainedDrafter
from mmspec.drafters.examples import Example
from mmspec.engine.noise import Noise
from mmspec.targets.base import Target

# The least and the largest beta.
BOUNDS = 0.2, 2.0
# Floor of a log probability.
IMPOSSIBLE = -50.0

# Numbers of one sequence at one depth, at most.
ROOM = 2**20

# One sequence at one depth: its number, roots, log q, noise there, and the tokens that were sampled, as numbers in the
# drafting vocabulary (-1: none of it).
Observations = tuple[int, Tensor, Tensor, Tensor, Tensor]


def cross_entropy(scores: Tensor, sampled: Tensor) -> Tensor:
    """Cross entropy of softmax(scores) against what was sampled, summed."""
    return torch.nn.functional.cross_entropy(scores, sampled, reduction="sum")


def fit_pair(log_q: Tensor, noise: Tensor, sampled: Tensor, iterations: int = 12) -> tuple[float, float]:
    """The pair (lambda, beta), lambda from 0 to 1 and beta within `BOUNDS`, with the least cross entropy of
    softmax(beta (log q + lambda g)).

    It is convex in beta and beta lambda. Newton's method finds its minimum, steps being halved until they help; where
    that is beyond the bounds, the least value within them is on an edge.
    """
    features = torch.stack([log_q.clamp(min=IMPOSSIBLE), noise])
    right = features[:, torch.arange(len(sampled)), sampled].sum(1)
    weights = features.new_tensor([1.0, 0.5])
    loss = cross_entropy(torch.tensordot(weights, features, 1), sampled)
    for _ in range(iterations):
        probs = torch.softmax(torch.tensordot(weights, features, 1), -1)
        means = (probs * features).sum(2)
        second = torch.einsum("rv,irv,jrv->ij", probs, features, features)
        curvature = second - means @ means.T + 1e-3 * torch.eye(2).to(features)
        step = torch.linalg.solve(curvature, means.sum(1) - right)
        for _ in range(8):
            changed = cross_entropy(torch.tensordot(weights - step, features, 1), sampled)
            if changed < loss:
                weights, loss = weights - step, changed
                break
            step = step / 2
        else:
            break
    least, most = BOUNDS
    if not (least <= weights[0] <= most and 0 <= weights[1] <= weights[0]):
        corners = features.new_tensor([[least, 0], [most, 0], [most, most], [least, least]])
        edges = [least_between(features, right, *edge) for edge in zip(corners, corners.roll(-1, 0), strict=True)]
        weights = min(edges, key=lambda edge: float(cross_entropy(torch.tensordot(edge, features, 1), sampled)))
    beta, product = weights.tolist()
    return product / beta, beta


def least_between(features: Tensor, right: Tensor, first: Tensor, last: Tensor, halvings: int = 14) -> Tensor:
    """The weights between two with the least cross entropy, by bisection of its slope; `right` is the sum of the
    features of what was sampled.
    """
    low, high = 0.0, 1.0
    for _ in range(halvings):
        middle = (low + high) / 2
        probs = torch.softmax(torch.tensordot(torch.lerp(first, last, middle), features, 1), -1)
        slope = ((probs * features).sum((1, 2)) - right) @ (last - first)
        low, high = (low, middle) if slope > 0 else (middle, high)
    return torch.lerp(first, last, low if low == 0 else high)


def fit_calibration(drafter: TrainedDrafter, depths: Sequence[Sequence[Observations]]) -> list[list[float]]:
    """Give each depth of the drafter the pair that best predicts what was sampled; returns accuracies by depth and
    rank.

    An accuracy is how often the i-th candidate was right. Both are taken at roots whose sampled tokens were candidates
    at all depths before, since no other path gets there; where no root is left, the pair of the depth before stands.
    """
    reachable: dict[int, set[int]] = {}
    accuracies, pair = [], (1.0, 1.0)
    for depth, observations in enumerate(depths):
        right, count = torch.zeros(drafter.ranks), 0
        reached, known = [], []
        for row, roots, log_q, noise, sampled in observations:
            mask = [not depth or root in reachable.get(row, ()) for root in roots.tolist()]
            counted = torch.tensor(mask, dtype=torch.bool, device=roots.device)
            log_q, noise, sampled = log_q[counted], noise[counted], sampled[counted]
            reached.append((row, roots[counted], log_q, noise, sampled))
            drafted = sampled >= 0
            if drafted.any():
                known.append((log_q[drafted], noise[drafted], sampled[drafted]))
        if known:
            log_q, noise, sampled = (torch.cat(part) for part in zip(*known))
            pair = fit_pair(log_q, noise, sampled)
        drafter.coupling[depth], drafter.beta[depth] = (round(number, 3) for number in pair)
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
    """What the drafter predicts along sequences at each depth and their temperature T, T log q, with the noise T g that
    they were sampled with (none if greedy); with a large vocabulary, after every n-th of their tokens.
    """
    depths: list[list[Observations]] = [[] for _ in drafter.beta]
    drafted = drafter.drafted_tokens(target)
    index = torch.full((target.vocabulary_size,), -1, device=target.device)
    tokens = torch.arange(target.vocabulary_size, device=target.device) if drafted is None else drafted
    index[tokens] = torch.arange(len(tokens), device=target.device)
    most = max(16, ROOM // len(tokens))
    for row, example in enumerate(examples):
        every = -(-len(example.tokens) // most)
        noise = Noise([max(0, example.seed)], target.vocabulary_size).gumbel([0], len(example.tokens))[0]
        noise = noise.to(target.device) * (example.seed >= 0)
        for depth, predictions in enumerate(drafter.predictions(target, example)):
            chosen = (predictions.positions - depth) % every == 0
            positions, log_q = predictions.positions[chosen], predictions.log_q[chosen]
            gumbel = noise[positions][:, tokens[: log_q.shape[1]]]
            if example.seed >= 0 and example.temperature != 1:
                log_q = example.temperature * torch.log_softmax(log_q / example.temperature, -1)
                gumbel = example.temperature * gumbel
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
