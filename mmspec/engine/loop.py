"""The loop: draft, verify, accept, commit. There is no other; plain AR decoding is this one with the empty drafter."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from mmspec.drafters.base import Drafter
from mmspec.drafters.none import NoDrafter
from mmspec.engine.accept import Acceptance, Verdict, acceptance, perturb
from mmspec.engine.noise import Noise
from mmspec.engine.sampling import Prefixes, SamplingOptions
from mmspec.engine.state import State
from mmspec.engine.stats import GenerationStats
from mmspec.engine.tree import DraftTree, root
from mmspec.errors import MmspecError
from mmspec.targets.base import Target

# Slots kept for one tree, whatever the drafter: a cache of equal size makes passes of equal bits (see cache.KV_BLOCK).
MAX_TREE_NODES = 64


@dataclass(frozen=True, slots=True)
class Round:
    """What one round committed: for each row its new tokens (none for one that has stopped or waits), which rows go on, and seconds spent."""

    tokens: list[list[int]]
    nodes: int
    running: list[bool]
    draft: float
    target: float
    accept: float
    total: float


@dataclass(frozen=True, slots=True)
class Generation:
    """All generated tokens, row by row, and what they cost."""

    tokens: list[list[int]]
    stats: GenerationStats


@dataclass(frozen=True, slots=True)
class Stop:
    """When a row ends: after `length` tokens, at one of the `eos` tokens, or when `when(row, tokens)` says so."""

    length: int
    eos: frozenset[int] = frozenset()
    when: Callable[[int, list[int]], bool] | None = None

    def trim(self, row: int, before: list[int], new: list[int]) -> tuple[list[int], bool]:
        """The part of `new` that still belongs to the row, and whether the row ends with it."""
        kept: list[int] = []
        for token in new[: self.length - len(before)]:
            kept.append(token)
            if token in self.eos or (self.when and self.when(row, before + kept)):
                return kept, True
        return kept, len(before) + len(kept) >= self.length


class Batch:
    """Rows that are generated together, each with its own prompt, seed, length and end; they may join and leave between rounds.

    What a row says does not depend on the others.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None = None,
        sampling: SamplingOptions = SamplingOptions(),
        rule: str | Acceptance = "exact",
    ):
        self.target, self.drafter, self.sampling, self.rule = target, drafter or NoDrafter(), sampling, acceptance(rule)
        self.state: State | None = None
        self.stops: list[tuple[Stop, int]] = []
        self.seeds: list[int] = []
        self.running: list[bool] = []
        self._former: list[int | None] = []
        self._seated = False

    @torch.inference_mode()
    def join(self, prompts: Any, seeds: list[int], stop: Stop) -> None:
        """Read prompts; their rows come after the present ones."""
        fresh = self.target.prefill(
            prompts, stop.length + max(self.drafter.max_nodes, MAX_TREE_NODES) + 1, self.drafter.needs_features
        )
        if fresh.rows != len(seeds):
            raise MmspecError(f"{len(seeds)} seeds were given for {fresh.rows} rows: give one each, or a single number")
        present, self.state = self.state, None  # a join that fails midway leaves nothing that could go on
        if present:
            present.join(fresh)
        self.state = present or fresh
        self.stops += [(stop, row) for row in range(len(seeds))]
        self.seeds += seeds
        self.running += [stop.length > 0] * len(seeds)
        self._former += [None] * len(seeds)
        self._changed()

    @torch.inference_mode()
    def keep(self, rows: list[int]) -> None:
        """All other rows leave."""
        assert self.state is not None, "nobody has joined"
        self.state = self.state if rows else None
        if self.state:
            self.state.keep(rows)
        self.stops, self.seeds = [self.stops[row] for row in rows], [self.seeds[row] for row in rows]
        self.running, self._former = [self.running[row] for row in rows], [self._former[row] for row in rows]
        self._changed()

    @property
    def fresh(self) -> list[bool]:
        """Rows whose first token is known and not yet said."""
        return [one is not None for one in self.state.ahead] if self.state else []

    def _changed(self) -> None:
        self._strict = self.target.strict.union(*(stop.eos for stop, _ in self.stops))
        self._noise = Noise(self.seeds, self.target.vocabulary_size, self.target.device, self.sampling.greedy)
        self._seated = False

    def _seat(self, state: State) -> None:
        """Tell the drafter who is there."""
        reseat: Any = getattr(self.drafter, "reseat", None)
        if reseat and any(row is not None for row in self._former):
            reseat(state, self._former)
        else:
            self.drafter.start(self.target, state, self.sampling, self.rule.drawn)
        self._former, self._seated = list(range(state.rows)), True

    @torch.inference_mode()
    def round(self, on_verdict: Callable[[State, DraftTree, Tensor, Verdict], None] | None = None) -> Round:
        """Draft, verify, accept, commit. Rows that have just joined get the token that reading their prompts told, and the others wait."""
        state = self.state
        assert state is not None, "nobody has joined"
        t0 = perf_counter()
        noise, fresh = self._noise, self.fresh
        first = any(fresh)
        if first:
            turn = [alive and new for alive, new in zip(self.running, fresh)]
            tree = root(state.roots)
            t1 = perf_counter()
            out = state.first()
            state.ahead = [None] * state.rows
        else:
            turn = self.running
            if not self._seated:
                self._seat(state)
            left = max(stop.length - count for (stop, _), count, alive in zip(self.stops, state.counts, turn) if alive)
            tree = self.drafter.draft(state, noise, left - 1)
            t1 = perf_counter()
            out = self.target.forward(state, tree)
        t2 = perf_counter()
        scores = self.sampling.scores(out.logits, Prefixes(state, tree) if self.sampling.reads_prefix else None)
        keys = perturb(tree, scores, noise, state.counts)
        verdict = self.rule(tree, scores, keys, noise, state.counts, self._strict)
        ends = [
            stop.trim(row, before, found) if mine else ([], not alive)
            for (stop, row), before, found, mine, alive in zip(
                self.stops, state.tokens, verdict.tokens, turn, self.running
            )
        ]
        new = [kept for kept, _ in ends]
        paths = [path[: len(kept)] for path, kept in zip(verdict.paths, new)]
        if on_verdict:
            on_verdict(state, tree, keys, verdict)
        t3 = perf_counter()
        state.commit(tree, paths, new, out.hidden)
        t4 = perf_counter()
        if not first:
            self.drafter.observe(state, tree, Verdict(paths, new), keys)
        t5 = perf_counter()
        self.running = [not over for _, over in ends]
        return Round(new, tree.size, self.running, t1 - t0 + t5 - t4, t2 - t1, t3 - t2, perf_counter() - t0)


@torch.inference_mode()
def stream(
    target: Target,
    prompts: Any,
    rows: int,
    stop: Stop,
    drafter: Drafter | None = None,
    sampling: SamplingOptions = SamplingOptions(),
    seeds: list[int] | int = 0,
    rule: str | Acceptance = "exact",
    cancel: Callable[[], bool] = lambda: False,
    stats: GenerationStats | None = None,
    on_verdict: Callable[[State, DraftTree, Tensor, Verdict], None] | None = None,
) -> Iterator[Round]:
    """Generate round by round; only verified tokens leave.

    `seeds` is one seed per row, or one number from which rows count up. `stats` is filled as rounds pass;
    `on_verdict(state, tree, keys, verdict)` sees each verification (keys are log p + g of every node) before it is committed. Closing the iterator or a
    true `cancel()` ends generation between rounds.
    """
    batch, stats = Batch(target, drafter, sampling, rule), stats or GenerationStats()
    began = perf_counter()
    batch.join(prompts, [seeds + row for row in range(rows)] if isinstance(seeds, int) else seeds, stop)
    stats.begin(batch.drafter.name, batch.rule, rows, perf_counter() - began)
    while any(batch.running) and not cancel():
        step = batch.round(on_verdict)
        stats.add(step, step.tokens, batch.state.cache.bytes if batch.state else 0)
        yield step


def generate(
    target: Target, prompts: Any, rows: int, stop: Stop, drafter: Drafter | None = None, **options: Any
) -> Generation:
    """`stream` to the end; see there for the options."""
    stats = options.pop("stats", None) or GenerationStats()
    tokens: list[list[int]] = [[] for _ in range(rows)]
    for step in stream(target, prompts, rows, stop, drafter, stats=stats, **options):
        for row, new in zip(tokens, step.tokens):
            row.extend(new)
    return Generation(tokens, stats)
