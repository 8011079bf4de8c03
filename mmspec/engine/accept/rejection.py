"""Speculative sampling (Leviathan et al. 2023), for trees (SpecInfer; Hawk eq. 6-7)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mmspec.engine.accept.base import Accepted
from mmspec.engine.largest import argmax
from mmspec.engine.noise import Noise
from mmspec.engine.tree import DraftTree


def _children(tree: DraftTree) -> Tensor:
    """The child nodes of every node, in order: `row node child`, -1 where there are no more."""
    nodes = torch.arange(tree.size, device=tree.parents.device)
    siblings = tree.parents[:, :, None] == tree.parents[:, None, :]
    number = (siblings & (nodes[None, :] < nodes[:, None])).sum(2)
    most = max(1, tree.size - 1 if tree.max_children is None else tree.max_children)
    children = torch.full((len(tree.parents), tree.size, most + 1), -1, device=nodes.device)
    real = (tree.parents >= 0) & (nodes > 0)
    slot = torch.where(real, number, most)  # the last column takes what is no child
    flat = tree.parents.clamp(min=0) * (most + 1) + slot
    return children.flatten(1).scatter(1, flat, nodes.expand_as(flat)).view_as(children)[:, :, :most]


@dataclass(frozen=True)
class Rejection:
    """LOSSLESS in distribution, not per seed. Multi-round speculative sampling.

    Each child x comes from its own distribution q: accept it with probability min(1, r(x) / q(x)), else r becomes
    norm((r - q)+), starting with the target's p. Children sampled without replacement from one q set it to zero at each
    rejected sibling. Children that were not sampled are point masses.
    """

    needs_draft_probs: ClassVar[bool] = True
    usage: ClassVar[str] = ""
    name: ClassVar[str] = "rejection"
    lossless: ClassVar[bool] = True

    def __call__(
        self,
        tree: DraftTree,
        scores: Tensor,
        gumbel_scores: Tensor,
        noise: Noise,
        counts: list[int],
        protected: frozenset[int] = frozenset(),
    ) -> Accepted:
        vocabulary, device, rows = scores.shape[2], scores.device, len(counts)
        if noise.greedy:
            probs = F.one_hot(scores.argmax(2), vocabulary).to(scores.dtype)
        else:
            probs = torch.softmax(scores, dim=2)
        children = _children(tree)
        positions = [[count + depth for depth in range(tree.height + 1)] for count in counts]
        coins = noise.coins(positions, children.shape[2]).double()
        if not noise.greedy:
            gumbel = noise.fresh(positions, Noise.ACCEPT + 1)[:, :, 0].to(probs.dtype)
        row = torch.arange(rows, device=device)
        node = torch.zeros(rows, dtype=torch.long, device=device)
        walking = torch.ones(rows, dtype=torch.bool, device=device)
        lengths = torch.zeros(rows, dtype=torch.long, device=device)
        path, tokens = [], []
        for depth in range(tree.height + 1):
            residual = probs[row, node]
            following = torch.full_like(node, -1)
            searching = walking.clone()
            tried = torch.zeros(rows, vocabulary, dtype=torch.bool, device=device)
            for number in range(children.shape[2]):
                child = children[row, node, number]
                token = tree.tokens[row, child.clamp(min=0)].clamp(min=0)
                one_hot = F.one_hot(token, vocabulary).bool()
                q = one_hot.to(residual.dtype) if tree.probs is None else tree.probs[row, child].to(residual.dtype)
                if tree.probs is not None and not tree.with_replacement:
                    remaining = q.masked_fill(tried, 0.0)
                    remaining = remaining / remaining.sum(1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
                    q = torch.where(tried.any(1, keepdim=True), remaining, q)
                q_token = q[row, token].double()
                possible = searching & (child >= 0) & (following < 0) & (q_token > 0)
                accepted = possible & (coins[:, depth, number] * q_token < residual[row, token].double())
                following = torch.where(accepted, child, following)
                difference = (residual - q).clamp(min=0)
                mass = difference.sum(1)
                rejected = possible & ~accepted
                searching &= ~(rejected & (mass <= 0))
                goes_on = (rejected & (mass > 0))[:, None]
                residual = torch.where(goes_on, difference / mass[:, None], residual)
                tried |= goes_on & one_hot
            bonus = residual.argmax(1) if noise.greedy else (residual.log() + gumbel[:, depth]).argmax(1)
            path.append(node)
            tokens.append(torch.where(following >= 0, tree.tokens[row, following.clamp(min=0)], bonus))
            lengths += walking
            walking = walking & (following >= 0)
            node = torch.where(walking, following, node)
        return Accepted(torch.stack(path, 1), torch.stack(tokens, 1), lengths, argmax(gumbel_scores))
