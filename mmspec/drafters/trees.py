"""How deep to draft, and trees that are sampled."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from mmspec.engine.accept import Committed
from mmspec.engine.cost import Cost
from mmspec.engine.noise import Noise
from mmspec.engine.state import State
from mmspec.engine.tree import DraftTree

# How fast estimates follow what is accepted, and what is expected of a level that was never drafted.
RATE, PRIOR = 0.1, 0.8


class DepthPlan:
    """How many levels a drafter that pays for every level should draft.

    A level is worth its time if the token that it may add, by how often paths got that far in earlier rounds, comes
    sooner than at the present rate. Nothing is read while drafting.
    """

    def __init__(self, depth: int):
        self.reached = [PRIOR ** (level + 1) for level in range(depth)]
        self._length = 3.0
        self._step = 0.0

    def height(self, limit: int, cost: Cost | None) -> int:
        """Levels to draft: at most `limit`, all if it is not known what passes cost."""
        most = min(limit, len(self.reached))
        if cost is None or not self._step:
            return most
        for level in range(1, most):
            seconds = cost.target(8) + level * self._step
            if self.reached[level] < self._step * self._length / seconds:
                return level
        return most

    def observe(self, committed: Committed, height: int) -> None:
        """Learn from a round whose tree had that height."""
        lengths = [len(path) for path in committed.paths if path]
        if not lengths:
            return
        self._length += RATE * (sum(lengths) / len(lengths) - self._length)
        for level in range(min(height, len(self.reached))):
            share = sum(length > level + 1 for length in lengths) / len(lengths)
            self.reached[level] += RATE * (share - self.reached[level])
        for level in range(max(1, height), len(self.reached)):
            self.reached[level] = self.reached[level - 1] * PRIOR

    def took(self, seconds: float, height: int) -> None:
        """Drafting `height` levels took so long."""
        step = seconds / height
        self._step = step if not self._step else self._step + RATE * (step - self._step)


def sample_tree(
    state: State,
    noise: Noise,
    scores: Callable[[int, Int[Tensor, "row beam"], Int[Tensor, "row beam"]], Float[Tensor, "row beam vocab"]],
    widths: list[int],
    height: int,
    max_nodes: int,
    paths: int = 0,
) -> DraftTree:
    """Siblings sampled without replacement from q, by Gumbel top-m with noise of their own, `widths[depth]` a node, or
    as many as `paths` by `sample_beams` have.

    `scores(depth, tokens, parent_index)` are those that follow the nodes of a level, whose parents were at
    `parent_index` of the level before.
    """
    if paths > 0 and not noise.greedy:
        return sample_beams(state, noise, scores, min(paths, max_nodes), height, max_nodes)
    rows, device = state.rows, state.roots.device
    level, parent_index = state.roots[:, None], torch.zeros(rows, 1, dtype=torch.long, device=device)
    head = state.roots[:, None]
    tokens, parents, depths = [head], [torch.full_like(head, -1)], [torch.zeros_like(head)]
    all_probs: list[Tensor] = []
    first, count = 0, 1
    for depth in range(height):
        width, beam = widths[depth], level.shape[1]
        probs = scores(depth, level, parent_index).softmax(2)
        all_probs = all_probs or [torch.zeros_like(probs[:, :1])]
        if noise.greedy:
            level, width = probs.argmax(2), 1
            probs = F.one_hot(level, probs.shape[2]).to(probs.dtype)
        else:
            fresh = noise.fresh([[position + depth] for position in state.counts], Noise.DRAFT)[:, :, 0]
            level = (probs.log() + fresh.to(probs)).topk(width, dim=2).indices.flatten(1)
        parent_index = torch.arange(beam, device=device).repeat_interleave(width).expand(rows, -1)
        tokens.append(level)
        parents.append(parent_index + first)
        depths.append(torch.full_like(level, depth + 1))
        all_probs.append(probs.repeat_interleave(width, dim=1))
        first, count = count, count + level.shape[1]
        if depth + 1 < height and count + level.shape[1] * widths[depth + 1] > max_nodes:
            break
    return drawn_tree(tokens, parents, depths, all_probs, max(widths[: len(tokens) - 1]))


def sample_beams(
    state: State,
    noise: Noise,
    scores: Callable[[int, Int[Tensor, "row beam"], Int[Tensor, "row beam"]], Float[Tensor, "row beam vocab"]],
    width: int,
    height: int,
    max_nodes: int,
) -> DraftTree:
    """The `width` paths of each length that stochastic beam search samples without replacement (RSD-S: Jeon et al.,
    arXiv 2402.14160; Kool et al., arXiv 1903.06059); see `sample_tree`.

    A path has the value log q + Gumbel noise, under the condition that no path below another has a larger one than
    that. Siblings come by falling value, and how many there are depends on values, which say nothing of which token has
    them: each is a draw from what its siblings before left of q.
    """
    rows, device = state.rows, state.roots.device
    head = state.roots[:, None]
    level, parent_index = head, torch.zeros_like(head)
    values = paths = torch.zeros(rows, 1, dtype=torch.float64, device=device)
    tokens, parents, depths = [head], [torch.full_like(head, -1)], [torch.zeros_like(head)]
    all_probs: list[Tensor] = []
    first, count = 0, 1
    for depth in range(height):
        log_q = scores(depth, level, parent_index).double().log_softmax(2)
        all_probs = all_probs or [torch.zeros_like(log_q[:, :1])]
        fresh = noise.fresh([[position + depth] for position in state.counts], Noise.DRAFT, level.shape[1])[:, 0]
        log_probs = paths[:, :, None] + log_q
        drawn = log_probs + fresh.to(log_probs)
        over = values[:, :, None] - drawn + torch.log1p(-(drawn - drawn.amax(2, keepdim=True)).exp())
        below = values[:, :, None] - over.clamp(min=0) - torch.log1p((-over.abs()).exp())
        below = below.masked_fill(~drawn.isfinite(), -torch.inf)
        values, best = below.flatten(1).topk(min(width, below[0].numel()), dim=1)
        parent_index, level = best // log_q.shape[2], best % log_q.shape[2]
        real = values.isfinite()
        paths = log_probs.flatten(1).gather(1, best)
        tokens.append(level)
        parents.append((parent_index + first).masked_fill(~real, -1))
        depths.append(real.long() * (depth + 1))
        all_probs.append(log_q.exp().gather(1, parent_index[:, :, None].expand(-1, -1, log_q.shape[2])))
        first, count = count, count + level.shape[1]
        if count + width > max_nodes:
            break
    return drawn_tree(tokens, parents, depths, all_probs, width)


def drawn_tree(
    tokens: list[Tensor], parents: list[Tensor], depths: list[Tensor], probs: list[Tensor], max_children: int
) -> DraftTree:
    """The tree of levels, the root's first, whose siblings were sampled without replacement."""
    return DraftTree(
        torch.cat(tokens, 1),
        torch.cat(parents, 1),
        torch.cat(depths, 1),
        len(tokens) - 1,
        probs=torch.cat(probs, 1),
        with_replacement=False,
        max_children=max_children,
    )
