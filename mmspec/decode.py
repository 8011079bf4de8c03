"""The loop: draft, verify, accept, commit. There is no other; plain AR decoding is this one with the empty drafter."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from mmspec.accept import Acceptance, Verdict, acceptance, perturb
from mmspec.drafters.base import Drafter
from mmspec.drafters.none import NoDrafter
from mmspec.errors import MmspecError
from mmspec.metrics import GenerationStats
from mmspec.sampling import Noise, Prefixes, Sampling
from mmspec.targets.base import State, Target
from mmspec.tree import DraftTree

# Slots kept for one tree, whatever the drafter: a cache of equal size makes passes of equal bits (see cache.VISIBLE).
TREE = 64


@dataclass(frozen=True, slots=True)
class Round:
    """What one round committed: for each row its new tokens (none for a row that has stopped)."""

    tokens: list[list[int]]
    nodes: int


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


@torch.inference_mode()
def stream(
    target: Target,
    prompts: Any,
    rows: int,
    stop: Stop,
    drafter: Drafter | None = None,
    sampling: Sampling = Sampling(),
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
    rule, drafter, stats = acceptance(rule), drafter or NoDrafter(), stats or GenerationStats()
    seeds = [seeds + row for row in range(rows)] if isinstance(seeds, int) else seeds
    if len(seeds) != rows:
        raise MmspecError(f"{len(seeds)} seeds were given for {rows} rows: give one each, or a single number")
    began = perf_counter()
    noise = Noise(seeds, target.vocabulary, target.device, sampling.greedy)
    state = target.prefill(prompts, stop.length + max(drafter.max_nodes, TREE) + 1, drafter.needs_features)
    drafter.start(target, state, sampling, rule.drawn)
    stats.prefill = perf_counter() - began
    stats.total += stats.prefill
    stats.drafter, stats.acceptance, stats.lossless = drafter.name, rule.name, rule.lossless
    stats.runs = [[] for _ in range(rows)]
    running = [stop.length > 0] * rows
    while any(running) and not cancel():
        t0 = perf_counter()
        left = max(stop.length - count for count, alive in zip(state.counts, running) if alive)
        tree = drafter.draft(state, noise, left - 1)
        t1 = perf_counter()
        out = target.forward(state, tree)
        t2 = perf_counter()
        scores = sampling.scores(out.logits, Prefixes(state, tree) if sampling.processors else None)
        keys = perturb(tree, scores, noise, state.counts)
        verdict = rule(tree, scores, keys, noise, state.counts)
        ends = [
            stop.trim(row, before, found) if alive else ([], True)
            for row, (before, found, alive) in enumerate(zip(state.tokens, verdict.tokens, running))
        ]
        new = [kept for kept, _ in ends]
        paths = [path[: len(kept)] for path, kept in zip(verdict.paths, new)]
        if on_verdict:
            on_verdict(state, tree, keys, verdict)
        t3 = perf_counter()
        state.commit(tree, paths, new, out.hidden)
        t4 = perf_counter()
        drafter.observe(state, tree, Verdict(paths, new), keys)
        t5 = perf_counter()
        running = [not over for _, over in ends]
        for runs, kept in zip(stats.runs, new):
            if kept:
                runs.append(len(kept))
        stats.draft += t1 - t0 + t5 - t4
        stats.target += t2 - t1
        stats.accept += t3 - t2
        stats.nodes += tree.size
        stats.cache_bytes = stats.cache_bytes or state.cache.bytes
        stats.total += perf_counter() - t0
        yield Round(new, tree.size)


def generate(target: Target, prompts: Any, rows: int, stop: Stop, drafter: Drafter | None = None, **options: Any) -> Generation:
    """`stream` to the end; see there for the options."""
    stats = options.pop("stats", None) or GenerationStats()
    tokens: list[list[int]] = [[] for _ in range(rows)]
    for step in stream(target, prompts, rows, stop, drafter, stats=stats, **options):
        for row, new in zip(tokens, step.tokens):
            row.extend(new)
    return Generation(tokens, stats)
