"""A lattice: candidates of every depth, joined by what a table says of neighbouring tokens, and the best tree in it.

The table is the bilinear term of DSpark's Markov head and of DFlash 2's path selector: log q(v | u) gains b_v . a_u,
where u is the token before v. That heads read the last token, too, and that candidates are chosen before the table
joins them, were our choices.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from math import exp, log
from time import perf_counter

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmspec.drafters.base import Drafter, TrainedDrafter
from mmspec.engine.cost import best_width
from mmspec.engine.noise import Noise
from mmspec.engine.state import State
from mmspec.engine.tree import Candidates, DraftTree

# Candidates of a depth.
CANDIDATES = 12

# Floor of a log probability.
IMPOSSIBLE = -100.0


# A node of a tree: its token, its parent's number (0 is the root), its depth, and the probability of reaching it.
Node = tuple[int, int, int, float]


class PairTable(nn.Module):
    """b_v . a_u for tokens u and v after each other, of rank `rank`; zero before it is trained."""

    def __init__(self, vocabulary: int, rank: int):
        super().__init__()
        self.before, self.after = nn.Embedding(vocabulary, rank), nn.Embedding(vocabulary, rank)
        nn.init.zeros_(self.after.weight)

    def forward(self, tokens: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape vocab"]:
        """What is added to the log probabilities of the tokens that follow."""
        scores = nn.functional.linear(self.before(tokens), self.after.weight)
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def pairs(
        self, before: Int[Tensor, "*shape first"], after: Int[Tensor, "*shape second"]
    ) -> Float[Tensor, "*shape first second"]:
        """The same for chosen tokens alone."""
        scores = self.before(before) @ self.after(after).transpose(-1, -2)
        return scores.to(torch.promote_types(scores.dtype, torch.float32))


class RootReader(nn.Module):
    """What the last token changes in the hidden states that heads of each depth predict from; zero before training."""

    def __init__(self, hidden_size: int, vocabulary: int, inner: int, depth: int):
        super().__init__()
        self.feature, self.token = nn.Linear(hidden_size, inner, bias=False), nn.Embedding(vocabulary, inner)
        self.scale, self.norm = nn.RMSNorm(hidden_size), nn.RMSNorm(inner)
        self.up, self.down = nn.Linear(inner, inner), nn.Linear(inner, depth * hidden_size, bias=False)
        nn.init.normal_(self.token.weight, std=0.3)
        nn.init.zeros_(self.down.weight)

    def forward(
        self, features: Float[Tensor, "*shape width"], tokens: Int[Tensor, "*shape"], dropout: float = 0.0
    ) -> Float[Tensor, "*shape depth width"]:
        mixed = self.norm(self.feature(self.scale(features)) + self.token(tokens))
        mixed = nn.functional.dropout(mixed, dropout, self.training)
        changes = self.down(mixed + nn.functional.silu(self.up(mixed)))
        return changes.unflatten(-1, (-1, features.shape[-1]))


def joined_tree(
    drafter: TrainedDrafter,
    state: State,
    noise: Noise,
    log_q: Float[Tensor, "row depth drafted"],
    pairs: Callable[[Int[Tensor, "row after candidate"], Int[Tensor, "row after candidate"]], Tensor],
    began: float,
    tokens: Int[Tensor, "drafted"] | None = None,
) -> DraftTree:
    """The best tree of a lattice whose width pays.

    `log_q` are processed scores of each depth alone, up to a constant; `pairs` gives what the table adds to raw logits
    for candidates (by their index in the drafting vocabulary `tokens`) of one depth after those of the depth before,
    and `began` is when drafting began, in seconds of `perf_counter`. Reads the device once.
    """
    height, temperature = log_q.shape[1], drafter.sampling.temperature or 1.0
    if drafter.coupled and not noise.greedy:
        gumbel = noise.gumbel(state.counts, height)
        scores = drafter.sharpen(log_q, gumbel if tokens is None else gumbel[..., tokens], slice(height))
        weight = log_q.new_tensor(drafter.beta[1:height])
    else:
        sharpness = log_q.new_tensor((noise.greedy and drafter.greedy or [1.0] * height)[:height])
        scores, weight = log_q * sharpness[:, None], sharpness[1:] / temperature
    chosen = scores.topk(min(CANDIDATES, scores.shape[2]), dim=2).indices
    joined = weight[:, None, None] * pairs(chosen[:, :-1], chosen[:, 1:])
    rows = lattice_paths(scores, joined, chosen, drafter.nodes or drafter.max_nodes)
    return cut_tree(drafter, state.roots, rows, began, tokens)


def cut_tree(
    drafter: Drafter,
    roots: Int[Tensor, "row"],
    rows: list[list[Node]],
    began: float,
    tokens: Int[Tensor, "drafted"] | None = None,
) -> DraftTree:
    """The tree of as many of these nodes, best first, as pay; see `joined_tree`."""
    probs = [[probability for *_, probability in row] for row in rows]
    width = best_width(probs, drafter.nodes, drafter.cost, perf_counter() - began)
    return tree_of(roots, [row[:width] for row in rows], tokens)


def product_paths(levels: Candidates, max_nodes: int) -> list[list[Node]]:
    """For each row the `max_nodes` most probable paths where all nodes of a level have the same children; see
    `lattice_paths`.

    `levels` holds a level where other trees hold a node; its probabilities are sorted downwards.
    """
    packed = torch.stack([levels.probs.double(), levels.tokens.double()], 2).tolist()
    ranks = [float(rank) for rank in range(levels.tokens.shape[2])]
    return [
        best_paths([[list(map(log_or_impossible, probs)), ranks, tokens] for probs, tokens in row], 1, max_nodes)
        for row in packed
    ]


def log_or_impossible(probability: float) -> float:
    """The logarithm, at least `IMPOSSIBLE`, which is that of what is no number, too."""
    return max(IMPOSSIBLE, log(probability)) if probability > 0 else IMPOSSIBLE


def lattice_paths(
    scores: Float[Tensor, "row depth vocab"],
    pairs: Float[Tensor, "row after candidate candidate"],
    chosen: Int[Tensor, "row depth candidate"],
    max_nodes: int,
) -> list[list[Node]]:
    """For each row the `max_nodes` most probable paths of candidates, as the nodes that they end in, best first.

    `scores` are log weights of all tokens of a depth, `chosen` its candidates, and `pairs[:, d]` what candidates of
    depth d + 1 gain after each of those of depth d. A candidate's probability is its weight among those of all tokens
    of its depth after the same token; of tokens that are no candidates, `pairs` says nothing. Reads the device once.
    """
    rows, height, ranks = chosen.shape
    parts = [scores.gather(2, chosen), scores.logsumexp(2), chosen, pairs]
    read = torch.cat([part.double().flatten(1) for part in parts], 1).numpy(force=True)
    bounds = np.cumsum([height * ranks, height, height * ranks])
    best, total, tokens, gains = np.split(read, bounds, axis=1)
    best, total = best.reshape(rows, height, 1, ranks), total.reshape(rows, height, 1, 1)
    with np.errstate(all="ignore"):
        others = total + np.log1p(-np.minimum(np.exp(best - total).sum(3, keepdims=True), 1 - 1e-6))
        joined = np.repeat(best, ranks, axis=2)
        joined[:, 1:] += gains.reshape(rows, height - 1, ranks, ranks)
        logs = joined - np.logaddexp(np.logaddexp.reduce(joined, 3, keepdims=True), others)
        logs = np.maximum(np.nan_to_num(logs, nan=IMPOSSIBLE), IMPOSSIBLE)
    order = np.argsort(-logs, 3, kind="stable")
    tables = np.concatenate([np.take_along_axis(logs, order, 3), order, tokens.reshape(rows, height, 1, ranks)], 2)
    return [best_paths(table, ranks, max_nodes) for table in tables.tolist()]


def tree_of(
    roots: Int[Tensor, "row"], rows: list[list[Node]], names: Int[Tensor, "drafted"] | None = None
) -> DraftTree:
    """The tree of these nodes, padded, which is verified whole; their tokens are indices of `names` if it is given."""
    size = max(map(len, rows))
    padded = [[(0, -1, 0), *(node[:3] for node in row), *[(0, -1, 0)] * (size - len(row))] for row in rows]
    tokens, parents, depths = torch.tensor(padded, device=roots.device).unbind(2)
    tokens = torch.cat([roots[:, None], tokens[:, 1:] if names is None else names[tokens[:, 1:]]], 1)
    return DraftTree(tokens, parents, depths, max(depth for row in rows for _, _, depth, _ in row))


def best_paths(table: list[list[list[float]]], parents: int, max_nodes: int) -> list[Node]:
    """The most probable nodes of one row's tree, best first.

    `table[depth]` has, for each candidate of the depth before (for all alike, if `parents` is 1), log probabilities
    from the best down, then in the same order the numbers of the candidates, and last the candidates' tokens.
    """
    nodes: list[Node] = []
    # Siblings wait in the queue one at a time: (-log probability, depth, parent's node, its candidate, rank).
    queue = [(-table[0][0][0], 0, 0, 0, 0)]
    while queue and len(nodes) < max_nodes:
        cost, depth, parent, before, rank = heappop(queue)
        level = table[depth]
        child = int(level[parents + before][rank])
        nodes.append((int(level[-1][child]), parent, depth + 1, exp(-cost)))
        if depth + 1 < len(table):
            heappush(queue, (cost - table[depth + 1][child % parents][0], depth + 1, len(nodes), child % parents, 0))
        if rank + 1 < len(level[-1]):
            sibling = cost + level[before][rank] - level[before][rank + 1]
            heappush(queue, (sibling, depth, parent, before, rank + 1))
    return nodes
