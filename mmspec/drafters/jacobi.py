"""Jacobi drafting: the target's own samples behind the accepted path, coupled by the shared noise."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from mmspec.drafters.base import Drafter
from mmspec.engine.accept import Committed
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.tree import DraftTree, chain
from mmspec.targets.base import Target

# A tree of L guesses has about `scale * L ** growth` of them accepted. On grids positions beyond the first wrong one
# are refined for later rounds, so length pays more than the probabilities of one round say. Measured on the bundled
# models of pictures, 3 to 15 guesses in a chain, and of speech, 4 to 16 with branches (docs/LOG.md).
GRID_GROWTH, GROWTH = 0.7, 0.3

# Runners-up of the first guess where there is no grid and nothing else is said.
BRANCHES = 3

# The rate is flat around its best: take the shortest chain within this share of it.
SLACK = 0.02

# How fast the estimated scale follows what is accepted.
RATE = 0.05


class JacobiDrafter(Drafter):
    """Training-free; works on any target. After a round, the target's own samples behind the accepted path, made with
    each position's own noise, become the next guesses (MC-SJD, arXiv 2510.24211). Positions that have none yet start
    from the token above, if the target has a grid, or from the last token.

    There are `nodes` guesses, or, when `cost` knows what passes take here, as many as promise the most tokens per
    second given how many were accepted so far; else 15.

    `branches` makes it a tree at the break, where half of all rounds end (proactive drafting of SJD-PAC, arXiv
    2603.18599): so many runners-up of the first guess, ranked by log p + g of the last round, stand beside it, the
    first with copies of the next `branches` - 1 guesses behind it, each further one with one fewer. Branches are fewer
    where they would take more than half of the nodes. None is 3, and 0 on grids, where long chains accept more. The
    paper grows a full tree of three levels, four children each; that runners-up are coupled by the noise, and copy the
    chain instead of growing, were our choices.

    Under `rejection` guesses are a chain that says from which law of the last round each was drawn, so that one is
    accepted with probability min(1, p / q), as in Speculative Jacobi Decoding (Teng et al., arXiv 2410.01699). Their
    noise is that of their position, with which nothing was decided yet, so that the law stays the target's.
    """

    name = "jacobi"

    def __init__(self, nodes: int | None = None, max_nodes: int = 16, branches: int | None = None):
        self.nodes, self.max_nodes, self.branches = nodes, max(max_nodes, nodes or 1), branches

    def start(self, target: Target, state: State, sampling: SamplingOptions, needs_draft_probs: bool) -> None:
        self.target, self.needs_draft_probs = target, needs_draft_probs
        self._laws: list[Tensor | None] = [None] * state.rows
        self._gumbel: Tensor | None = None
        self._stride = target.grid.stride if target.grid else 1
        self._growth = GRID_GROWTH if target.grid else GROWTH
        default = 0 if target.grid else BRANCHES
        self._most_branches = 0 if needs_draft_probs else default if self.branches is None else self.branches
        self._guesses: list[list[int]] = [[] for _ in range(state.rows)]
        self._runners_up: Tensor | None = None
        self._scale = 0.5

    def change_rows(self, state: State, previous: list[int | None]) -> None:
        self._guesses = [[] if row is None else self._guesses[row] for row in previous]
        self._laws = [None if row is None else self._laws[row] for row in previous]
        self._runners_up = None

    def length(self) -> int:
        """How many guesses pay."""
        if self.nodes or not self.cost:
            return self.nodes or 15
        accepted = [self._scale * count**self._growth for count in range(self.max_nodes + 1)]
        gains = [after - before for before, after in zip(accepted, accepted[1:])]
        return self.cost.best_node_count(gains, 0.0, SLACK)

    def breadth(self, nodes: int, limit: int) -> int:
        """How many branches a tree of so many nodes and levels has."""
        if self._runners_up is None or self.target.chains_only:
            return 0
        most = min(self._runners_up.shape[1], limit)
        return max(count for count in range(most + 1) if count * (count + 1) <= nodes)

    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        nodes = self.length()
        branches = self.breadth(nodes, limit)
        height = min(limit, nodes - branches * (branches + 1) // 2)
        rows = []
        for guesses, tokens in zip(self._guesses, state.tokens, strict=True):
            row = guesses[:height]
            while len(row) < height:
                path = tokens + row
                row.append(path[-self._stride] if len(path) >= self._stride else path[-1] if path else 0)
            rows.append(row)
        guessed = torch.tensor(rows, dtype=torch.long, device=state.roots.device).view(state.rows, height)
        self._lengths = list(range(branches, 0, -1))
        self._gumbel = None
        if self.needs_draft_probs and not noise.greedy:
            self._gumbel = noise.gumbel(state.counts, height + 1)
            return replace(chain(state.roots, guessed), probs=self._drawn_from(guessed, self._gumbel.dtype))
        if not branches:
            return chain(state.roots, guessed)
        assert self._runners_up is not None
        return branching(state.roots, guessed, self._runners_up, self._lengths)

    def _drawn_from(self, guessed: Int[Tensor, "row depth"], dtype: torch.dtype) -> Float[Tensor, "row node vocab"]:
        """The law that each guess was drawn from; copies of other tokens are point masses."""
        tokens = F.pad(guessed, (1, 0))[:, :, None]
        probs = torch.zeros(*tokens.shape[:2], self.target.vocabulary_size, dtype=dtype, device=tokens.device)
        probs.scatter_(2, tokens, 1.0)
        for row, laws in enumerate(self._laws):
            if laws is not None:
                known = min(len(laws), guessed.shape[1])
                probs[row, 1 : 1 + known] = laws[:known]
        return probs

    def _law(
        self, tree: DraftTree, row: int, nodes: list[int], gumbel_scores: Float[Tensor, "row node vocab"]
    ) -> Float[Tensor, "guess vocab"]:
        """The laws of the samples at some nodes. What was drawn at padding has the noise of the root: a point mass."""
        assert self._gumbel is not None
        index = torch.tensor(nodes, dtype=torch.long, device=gumbel_scores.device)
        drawn, depths = gumbel_scores[row, index], tree.depths[row, index]
        laws = (drawn - self._gumbel[row, depths].to(drawn.dtype)).softmax(1)
        points = F.one_hot(drawn.argmax(1), drawn.shape[1]).to(drawn.dtype)
        return torch.where((depths == 0)[:, None], points, laws)

    def observe(self, state: State, tree: DraftTree, committed: Committed, gumbel_scores: Tensor) -> None:
        paths = committed.paths
        # Tokens may go on beyond the path, where this tree is a part of another one.
        beyond = [max(0, len(tokens) - len(path)) for path, tokens in zip(paths, committed.tokens, strict=True)]
        behind = [
            nodes_behind(path[-1], tree.height, self._lengths)[more:] if path else []
            for path, more in zip(paths, beyond, strict=True)
        ]
        self._guesses = [[row[node] for node in nodes] for row, nodes in zip(committed.samples, behind, strict=True)]
        if self._gumbel is not None:
            self._laws = [self._law(tree, row, nodes, gumbel_scores) for row, nodes in enumerate(behind)]
        elif self._most_branches and not self.target.chains_only:
            # Where nothing is behind the path, runners-up of its last token are as good as any.
            first = [[nodes[0] if nodes else path[-1] if path else 0] for nodes, path in zip(behind, paths)]
            index = torch.tensor(first, device=gumbel_scores.device)[:, :, None]
            scores = gumbel_scores.gather(1, index.expand(-1, -1, gumbel_scores.shape[2])).squeeze(1)
            self._runners_up = scores.topk(min(1 + self._most_branches, scores.shape[1]), dim=1).indices[:, 1:]
        accepted = [len(path) - 1 for path in paths if path]
        if accepted and tree.size > 1:
            rate = sum(accepted) / len(accepted) / (tree.size - 1) ** self._growth
            self._scale += RATE * (rate - self._scale)


def branching(
    roots: Int[Tensor, "row"],
    guesses: Int[Tensor, "row depth"],
    runners_up: Int[Tensor, "row rank"],
    lengths: list[int],
) -> DraftTree:
    """A chain of guesses, and behind it in order branches of these lengths beside its beginning: a runner-up of the
    first guess each, and copies of the guesses behind the first.
    """
    height = guesses.shape[1]
    columns, parents, depths = list(range(height)), [-1, *range(height)], list(range(height + 1))
    for rank, length in enumerate(lengths):
        columns += [height + rank, *range(1, length)]
        parents += [0, *range(len(parents), len(parents) + length - 1)]
        depths += range(1, length + 1)
    drafted = torch.cat([guesses, runners_up], 1).index_select(1, torch.tensor(columns, device=roots.device))
    above = torch.tensor([parents, depths], device=roots.device)[:, None].repeat(1, len(roots), 1)
    return DraftTree(torch.cat([roots[:, None], drafted], 1), above[0], above[1], height, max_children=1 + len(lengths))


def nodes_behind(last: int, height: int, lengths: list[int]) -> list[int]:
    """The nodes of `branching` behind a path that ends in node `last`: those of its branch, then the chain's deeper
    ones.
    """
    first = 1 + height
    for length in lengths if last >= first else []:
        if last < first + length:
            return [*range(last + 1, first + length), *range(length + 1, height + 1)]
        first += length
    return list(range(last + 1, height + 1))
