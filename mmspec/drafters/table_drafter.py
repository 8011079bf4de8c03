"""What drafters share that need no training: they draft from tables of what the target has said before."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import accumulate, count
from time import perf_counter
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mmspec.drafters.base import Drafter
from mmspec.engine.accept import Committed
from mmspec.engine.cost import best_width
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.tree import MAX_TREE_NODES, DraftTree
from mmspec.targets.base import Target

# The chance that a candidate of the first rank is the next token, before anything was observed, the factor from rank to
# rank, and the weight of each observation.
FIRST_CHANCE, DECAY, RATE = 0.4, 0.5, 0.02

# Contexts that a table keeps, at most: the oldest make room.
MOST = 200_000


@dataclass(frozen=True, slots=True)
class Known:
    """What may follow a context: tokens, their log probabilities up to a constant, and how much of the context it is
    known from, which decides what it is worth.
    """

    tokens: list[int]
    log_probs: list[float]
    matched: int = 1


@dataclass(slots=True)
class Node:
    """A node of a tree: its token, the node above it, its depth, the chance that it is reached, and the tokens from
    which its children were chosen, best first. Padding has a parent of -1 and depth 0, as the root has.
    """

    token: int
    parent: int
    depth: int
    chance: float
    children: list[int] = field(default_factory=list)
    matched: int = 0


class TableDrafter(Drafter):
    """Grows a tree on the host, best first, from tables of what followed.

    A subclass says what may follow a context (`after`), and learns from what the target said of every node (`learn`).
    Candidates are ranked by log q + g with the noise that the target's sample will use, as those of trained drafters
    are. What a rank is worth, for each length of the context that matched, is what it was worth in earlier rounds, so
    that nothing is calibrated. Tables outlast a generation: they are those of one target and one way of sampling.
    """

    # Whether `follow` is told of the tokens of the text.
    reads_text: ClassVar[bool] = False
    ranks: int
    depth: int

    def __init__(self, ranks: int = 8, depth: int = 8, nodes: int | None = None):
        self.ranks, self.depth, self.nodes, self.max_nodes = ranks, depth, nodes, max(MAX_TREE_NODES, nodes or 0)
        self._of: tuple | None = None
        self._chances: dict[int, list[float]] = {}
        self._said: Tensor | None = None

    @abstractmethod
    def after(self, context: Sequence[int]) -> Known | None:
        """What may follow a context, nothing where it is unknown."""

    def learn(self, context: Sequence[int], tokens: list[int], log_probs: list[float]) -> None:
        """The target said of a context that these tokens are the most probable ones, best first."""

    def follow(self, context: Sequence[int], token: int) -> None:
        """In the text, a prompt or what was generated, this token came after a context."""

    @abstractmethod
    def clear(self) -> None:
        """Begin with empty tables."""

    def forget(self) -> None:
        self._of = None

    @property
    @abstractmethod
    def order(self) -> int:
        """How many tokens of a context are read."""

    def start(self, target: Target, state: State, sampling: SamplingOptions, needs_draft_probs: bool) -> None:
        super().start(target, state, sampling, needs_draft_probs)
        of = (target.weights_hash or id(target.model), target.vocabulary_size, self.sampling)
        if self._of != of:
            self._of, self._chances, self._said = of, {}, None
            self.clear()
        self._read()  # what the last round of the generation before has said
        self._rows: list[list[Node]] = []
        self._followed = [0] * state.rows

    def change_rows(self, state: State, previous: list[int | None]) -> None:
        """What is known is of no row."""
        self._followed = [0 if row is None else self._followed[row] for row in previous]

    def chances(self, matched: int) -> list[float]:
        """What candidates of each rank are worth."""
        return self._chances.setdefault(matched, [FIRST_CHANCE * DECAY**rank for rank in range(self.ranks)])

    def draft(self, state: State, noise: Noise, limit: int) -> DraftTree:
        began, height = perf_counter(), min(limit, self.depth)
        gumbel, _ = self.read(state, noise, height)
        roots = [[Node(text[-1], -1, 0, 1.0)] for text in map(state.history, range(state.rows))]
        return self.grow(state, gumbel, height, began, roots)

    def read(
        self, state: State, noise: Noise, height: int, others: Tensor | None = None
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Learn what the last round said, and give the noise and others' numbers to the host, in one read."""
        # The noise of the loop's own sampling, too, which is computed once.
        self._gumbel = None if noise.greedy else noise.gumbel(state.counts, height + 1)
        gumbel, numbers = self._read(None if self.needs_draft_probs else self._gumbel, others)
        return gumbel, numbers

    def grow(
        self,
        state: State,
        gumbel: np.ndarray | None,
        height: int,
        began: float,
        given: list[list[Node]],
        everywhere: bool = False,
    ) -> DraftTree:
        """Trees of at most so many levels that begin with the nodes `given` of each row, root first. Nodes from tables
        come below their leaves, or `everywhere`, as many as pay if drafting began at `began`.
        """
        firsts = [len(nodes) for nodes in given]
        self._contexts = [self._read_text(row, state.history(row)) for row in range(state.rows)]
        for row, (context, nodes) in enumerate(zip(self._contexts, given, strict=True)):
            self._grow(context, nodes, None if gumbel is None else gumbel[row], height, everywhere)
        chances = [[node.chance for node in nodes[1:]] or [0.0] for nodes in given]
        width = 1 + best_width(chances, self.nodes, self.cost, perf_counter() - began)
        self._rows = [nodes[: max(first, width)] for nodes, first in zip(given, firsts, strict=True)]
        most = 1 if self.target.chains_only else self.ranks if max(firsts) == 1 else None
        return as_tree(self._rows, state.roots.device, most)

    def _read(self, *others: Tensor | None) -> list[np.ndarray | None]:
        """Learn what the last round said; the others on the host, after one read of the device."""
        asked = (self._said, *others)
        if not (parts := [part for part in asked if part is not None]):
            return [None for _ in others]
        numbers = torch.cat([part.float().flatten() for part in parts]).numpy(force=True)
        ends = accumulate(0 if part is None else part.numel() for part in asked)
        said, *found = (
            None if part is None else numbers[end - part.numel() : end].reshape(part.shape)
            for part, end in zip(asked, ends)
        )
        if said is not None:
            for row, nodes in enumerate(self._rows):
                for node in range(min(len(nodes), said.shape[2])):
                    tokens, log_probs = said[:, row, node]
                    known = log_probs > -np.inf
                    context = self._path(self._contexts[row], nodes, node)
                    self.learn(context, tokens[known].astype(int).tolist(), log_probs[known].tolist())
            self._said = None
        return found

    def _read_text(self, row: int, text: list[int]) -> list[int]:
        """Follow what is new of a row's text; the context that it ends with."""
        if self.reads_text:
            for end in range(max(1, self._followed[row]), len(text)):
                context = text[max(0, end - self.order) : end]
                # Tokens that the target reads and never says are negative.
                unsaid = max((place + 1 for place, token in enumerate(context) if token < 0), default=0)
                if text[end] >= 0 and unsaid < len(context):
                    self.follow(context[unsaid:], text[end])
            self._followed[row] = len(text)
        return text[-self.order :]

    def _grow(
        self, context: list[int], nodes: list[Node], noise: np.ndarray | None, height: int, everywhere: bool
    ) -> None:
        """Add to a tree the nodes that are most probably reached."""
        width = 1 if self.target.chains_only else self.ranks
        # What may be added, by falling chance; equals in the order in which they came.
        heap: list[tuple[float, int, int, int, list[int]]] = []
        came = count()

        def offer(number: int, path: list[int], present: set[int]) -> None:
            node = nodes[number]
            known = self.after(path) if node.depth < height else None
            if known is None:
                return
            node.matched = known.matched
            node.children = self._ranked(known, None if noise is None else noise[node.depth])
            for worth, child in zip(self.chances(known.matched)[:width], node.children):
                if child not in present:
                    heappush(heap, (-node.chance * worth, next(came), child, number, [*path[1 - self.order :], child]))

        below: dict[int, set[int]] = {}
        for node in nodes[1:]:
            below.setdefault(node.parent, set()).add(node.token)
        for number in range(len(nodes)):
            if number not in below or (everywhere and not self.target.chains_only):
                offer(number, self._path(context, nodes, number), below.get(number, set()))
        while heap and len(nodes) <= (self.nodes or self.max_nodes):
            chance, _, token, parent, path = heappop(heap)
            nodes.append(Node(token, parent, nodes[parent].depth + 1, -chance))
            offer(len(nodes) - 1, path, set())

    def _ranked(self, known: Known, noise: np.ndarray | None) -> list[int]:
        """Candidates, best first."""
        if noise is None:
            return known.tokens[: self.ranks]
        scores = np.asarray(known.log_probs) + noise[known.tokens]
        return [known.tokens[i] for i in np.argsort(-scores, kind="stable")[: self.ranks]]

    def observe(self, state: State, tree: DraftTree, committed: Committed, gumbel_scores: Tensor) -> None:
        for nodes, path, tokens in zip(self._rows, committed.paths, committed.tokens, strict=True):
            for node, token in zip(path, tokens):
                self._judge(nodes[node], token)
        scores = gumbel_scores
        if self._gumbel is not None:
            index = tree.depths[:, :, None].expand(-1, -1, scores.shape[2])
            scores = scores - self._gumbel.to(scores.dtype).gather(1, index)
        best = torch.log_softmax(scores, -1).topk(min(self.ranks, scores.shape[2]), dim=2)
        self._said = torch.stack([best.indices.float(), best.values.float()])

    def _path(self, context: list[int], nodes: list[Node], node: int) -> list[int]:
        """The tokens up to a node, as many as are read; `context` are those up to the root."""
        path: list[int] = []
        while node > 0 and len(path) < self.order:
            path.append(nodes[node].token)
            node = nodes[node].parent
        return [*context, *reversed(path)][-self.order :]

    def _judge(self, node: Node, token: int) -> None:
        """Learn what candidates are worth from the one that was right."""
        if not node.children:
            return
        chances = self.chances(node.matched)
        for rank, child in enumerate(node.children):
            chances[rank] += RATE * ((child == token) - chances[rank])


def make_room(table: dict) -> None:
    """Drop the oldest contexts of a table that has too many."""
    while len(table) > MOST:
        del table[next(iter(table))]


def as_tree(rows: list[list[Node]], device: torch.device, max_children: int | None) -> DraftTree:
    """Trees of the host as one."""
    size, height = max(map(len, rows)), max(node.depth for row in rows for node in row)
    table = [
        [(node.token, node.parent, node.depth) for node in nodes] + [(0, -1, 0)] * (size - len(nodes)) for nodes in rows
    ]
    tokens, parents, depths = torch.tensor(table, device=device).permute(2, 0, 1).contiguous()
    return DraftTree(tokens, parents, depths, height, max_children=max_children)
