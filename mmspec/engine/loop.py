"""The generation loop: draft, verify, accept, commit. Plain AR decoding is the same loop with `NoDrafter`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from mmspec.drafters.base import Drafter
from mmspec.drafters.none import NoDrafter
from mmspec.engine.accept import AcceptanceRule, Committed, acceptance, add_gumbel
from mmspec.engine.cost import choose_width
from mmspec.engine.rows import Rows, Stop
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.state import Output, Prefixes, State
from mmspec.engine.stats import GenerationStats, Stopwatch, timed
from mmspec.engine.tree import MAX_TREE_NODES, DraftTree, root
from mmspec.errors import MmspecError
from mmspec.targets.base import Prompts, Target

__all__ = ["Batch", "Generation", "OnAccept", "Round", "Stop", "generate", "stream"]

# Called as (state, tree, gumbel_scores, accepted) after a tree was verified and before its path is committed.
# `gumbel_scores` are log p + g of every node. `accepted` is not trimmed: it may contain tokens after the end of a row,
# and it has a path for rows that have already stopped.
OnAccept = Callable[[State, DraftTree, Tensor, Committed], None]


@dataclass(frozen=True, slots=True)
class Round:
    """What one round, or one `Batch.join`, committed.

    `tokens[row]` are the new tokens of a row: none if it has stopped, or if it was there before a join. `running[row]`
    says whether the row will be continued. `nodes` is the number of tree nodes verified per row, the root and padding
    included. `seconds` maps each phase ("prefill", "draft", "target", "accept") and "total" to seconds. `cache_bytes`
    is the size of the KV cache.
    """

    tokens: list[list[int]]
    nodes: int
    running: list[bool]
    seconds: dict[str, float]
    cache_bytes: int


@dataclass(frozen=True, slots=True)
class Generation:
    """All generated tokens, row by row, and what they cost."""

    tokens: list[list[int]]
    stats: GenerationStats


class Batch:
    """Sequences ("rows") that are generated together, each with its own prompt, seed and stopping condition.

    Rows may join and leave between rounds. The tokens of a row do not depend on the other rows.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None = None,
        sampling: SamplingOptions = SamplingOptions(),
        rule: str | AcceptanceRule = "exact",
        on_accept: OnAccept | None = None,
    ):
        self.target, self.drafter = target, drafter or NoDrafter()
        self.sampling, self.rule, self.on_accept = sampling, acceptance(rule), on_accept
        self.rows: Rows | None = None
        self.watch = Stopwatch()
        self._drafter_knows_rows = False

    @property
    def state(self) -> State | None:
        """What is committed, None without rows."""
        return self.rows.state if self.rows else None

    @property
    def running(self) -> list[bool]:
        """Which rows go on."""
        return self.rows.running if self.rows else []

    @torch.inference_mode()
    def join(self, prompts: Prompts, seeds: list[int], stop: Stop) -> Round:
        """Prefill prompts, append their rows to the batch, and commit their first tokens.

        `seeds` has one seed for each prompt, and `stop` applies to each of the new rows. If prefill raises, the batch
        is unchanged; if combining the new rows with the present ones raises, the batch is left empty.
        """
        self.watch.restart()
        joining = self._prefill(prompts, seeds, stop)
        tree, output = root(joining.state.roots), joining.state.prefill_output
        path, _ = self._accept(joining, tree, output)
        joining.state.commit(path.paths, path.tokens, output.hidden)
        present, self.rows = self.rows, None
        if present:
            present.join(joining)
        self.rows = present or joining
        before = len(self.running) - len(seeds)
        self._follow_rows([*range(before), *[None] * len(seeds)])
        return self._report([[] for _ in range(before)] + path.tokens, tree.size)

    @torch.inference_mode()
    def round(self) -> Round:
        """Draft a tree, verify it in one target pass, accept a path of it, and commit that."""
        self.watch.restart()
        rows = self.rows
        assert rows is not None, "the batch has no rows"
        if not self._drafter_knows_rows:
            self._start_drafter(rows)
        tree = self._draft(rows)
        output = self._verify(rows, tree)
        path, gumbel_scores = self._accept(rows, tree, output)
        rows.state.commit(path.paths, path.tokens, output.hidden)
        self._observe(rows, tree, path, gumbel_scores)
        return self._report(path.tokens, tree.size)

    @torch.inference_mode()
    def keep(self, rows: list[int]) -> None:
        """Keep only the given rows, in the given order, and remove all others."""
        assert self.rows is not None, "the batch has no rows"
        if rows:
            self.rows.keep(rows)
        else:
            self.rows = None
        self._follow_rows(list(rows))

    @timed("prefill")
    def _prefill(self, prompts: Prompts, seeds: list[int], stop: Stop) -> Rows:
        capacity = stop.length + max(self.drafter.max_nodes, MAX_TREE_NODES) + 1
        features = self.drafter.feature_layers or self.drafter.needs_features
        state = self.target.prefill(prompts, capacity, features)
        if state.rows != len(seeds):
            raise MmspecError(f"{len(seeds)} seeds were given for {state.rows} rows: give one each, or a single number")
        stops = [(stop, row) for row in range(len(seeds))]
        running = [stop.length > 0] * len(seeds)
        return Rows(state, seeds, stops, running, self.target.vocabulary_size, self.sampling.greedy)

    @timed("draft")
    def _draft(self, rows: Rows) -> DraftTree:
        began = perf_counter()
        tree = self.target.readable(rows.state, self.drafter.draft(rows.state, rows.noise, rows.room - 1))
        return choose_width(tree, self.drafter.nodes, self.drafter.cost, perf_counter() - began)

    @timed("target")
    def _verify(self, rows: Rows, tree: DraftTree) -> Output:
        return self.target.forward(rows.state, tree)

    @timed("accept")
    def _accept(self, rows: Rows, tree: DraftTree, output: Output) -> tuple[Committed, Tensor]:
        state, noise = rows.state, rows.noise
        prefixes = Prefixes(state, tree) if self.sampling.reads_prefix else None
        scores = self.sampling.scores(output.logits, prefixes)
        gumbel_scores = add_gumbel(tree, scores, noise, state.counts)
        protected = self.target.protected | rows.end_tokens
        accepted = self.rule(tree, scores, gumbel_scores, noise, state.counts, protected).read()
        if self.on_accept:
            self.on_accept(state, tree, gumbel_scores, accepted)
        return rows.trim(accepted), gumbel_scores

    @timed("draft")
    def _observe(self, rows: Rows, tree: DraftTree, path: Committed, gumbel_scores: Tensor) -> None:
        self.drafter.observe(rows.state, tree, path, gumbel_scores)

    @timed("draft")
    def _follow_rows(self, previous: list[int | None]) -> None:
        """Tell a drafter that has begun which rows there are: row i was row `previous[i]`, or is new if that is None.

        One that has not begins with the next round, so that first tokens do not wait until it has read their prompts.
        """
        if not any(self.running):
            self._drafter_knows_rows = False
        elif self._drafter_knows_rows:
            assert self.state is not None
            self.drafter.change_rows(self.state, previous)

    @timed("draft")
    def _start_drafter(self, rows: Rows) -> None:
        self.drafter.start(self.target, rows.state, self.sampling, self.rule.needs_draft_probs)
        self._drafter_knows_rows = True

    def _report(self, tokens: list[list[int]], nodes: int) -> Round:
        cache_bytes = self.state.cache.bytes if self.state else 0
        return Round(tokens, nodes, self.running, self.watch.seconds, cache_bytes)


@torch.inference_mode()
def stream(
    target: Target,
    prompts: Prompts,
    rows: int,
    stop: Stop,
    drafter: Drafter | None = None,
    sampling: SamplingOptions = SamplingOptions(),
    seeds: list[int] | int = 0,
    rule: str | AcceptanceRule = "exact",
    cancel: Callable[[], bool] = lambda: False,
    stats: GenerationStats | None = None,
    on_accept: OnAccept | None = None,
) -> Iterator[Round]:
    """Generate round by round, and yield the verified tokens of each round.

    The first `Round` is the prefill, which commits the first token of each row. `rows` is the number of prompts.
    `seeds` is one seed per row, or a single integer s for the seeds s, s + 1, ... `stats` is updated after each round.
    `on_accept(state, tree, gumbel_scores, accepted)` is called with each accepted path before it is committed (see
    `OnAccept`). Generation ends between rounds when the iterator is closed or when `cancel()` returns True.
    """
    batch, stats = Batch(target, drafter, sampling, rule, on_accept), stats or GenerationStats()
    stats.begin(batch.drafter.name, batch.rule.name, batch.rule.lossless, rows, target.chains_only)
    result = batch.join(prompts, [seeds + row for row in range(rows)] if isinstance(seeds, int) else seeds, stop)
    while any(result.tokens) and not cancel():
        stats.add(result.tokens, result.nodes, result.cache_bytes, result.seconds)
        yield result
        if not any(result.running) or cancel():
            return
        result = batch.round()


def generate(
    target: Target,
    prompts: Prompts,
    rows: int,
    stop: Stop,
    drafter: Drafter | None = None,
    sampling: SamplingOptions = SamplingOptions(),
    seeds: list[int] | int = 0,
    rule: str | AcceptanceRule = "exact",
    stats: GenerationStats | None = None,
    on_accept: OnAccept | None = None,
) -> Generation:
    """`stream` to the end; see there for the options."""
    stats = stats or GenerationStats()
    tokens: list[list[int]] = [[] for _ in range(rows)]
    rounds = stream(target, prompts, rows, stop, drafter, sampling, seeds, rule, stats=stats, on_accept=on_accept)
    for result in rounds:
        for row, new in zip(tokens, result.tokens):
            row.extend(new)
    return Generation(tokens, stats)
