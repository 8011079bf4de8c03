"""Continuous batching: generations that are asked for at different times share the target's passes."""

import copy
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Condition, Thread

from torch import nn

from mmspec import drafters
from mmspec.drafters.base import Drafter
from mmspec.engine.accept import AcceptanceRule
from mmspec.engine.cost import Cost, measured
from mmspec.engine.loop import Batch, Round, Stop
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.stats import GenerationStats
from mmspec.errors import MmspecError, short, unknown
from mmspec.memory import release_free_memory
from mmspec.pipelines.solo import Run
from mmspec.targets.base import Prompts, Target

# Seconds between looks whether a call that waits for a round was cancelled.
POLL_SECONDS = 0.1

# Seconds without work after which free memory goes back to the system.
IDLE = 1.0


class Busy(MmspecError):
    """The queue is full: ask again later."""


class Closing(MmspecError):
    """Nothing is served any more."""


CLOSED = "nothing is served any more: ask again when the server is back"


@dataclass(eq=False, slots=True)
class Job:
    """One call: rows that wait or are generated; `abandoned` once nobody listens any more."""

    batch_key: Hashable
    drafter: str
    prompts: Prompts
    stop: Stop
    seeds: list[int]
    sampling: SamplingOptions
    rule: AcceptanceRule
    stats: GenerationStats
    rounds: "SimpleQueue[Round | Exception | None]" = field(default_factory=SimpleQueue)
    abandoned: bool = False


@dataclass(slots=True)
class SharedBatch:
    """A batch, and for each of its rows the job that it belongs to and its number there."""

    batch: Batch
    owners: list[tuple[Job, int]] = field(default_factory=list)


def batch_key(drafter: str, sampling: SamplingOptions, rule: AcceptanceRule, prompts: Prompts) -> Hashable:
    """What calls must have in common to share a batch.

    Processors of the caller's own are the same only if they are the same objects: their settings may lie in tensors.
    """
    numbers = replace(sampling, logits_processor=())
    processors = tuple(map(id, sampling.logits_processor))
    return drafter, numbers, processors, rule, bool(prompts.unconditional), prompts.guidance


def fresh(drafter: Drafter) -> Drafter:
    """A drafter of the same settings for another batch: parameters are shared, all other attributes are its own.

    Raises MmspecError for a drafter that cannot be copied.
    """
    parameters = drafter.parameters() if isinstance(drafter, nn.Module) else ()
    try:
        return copy.deepcopy(drafter, {id(tensor): tensor for tensor in parameters})
    except TypeError as error:
        raise MmspecError(
            f"drafter {drafter.name!r} cannot be copied for another batch ({short(error)}): give it a __deepcopy__"
        ) from None


class Batcher:
    """The `runner` of a pipeline that many threads use at once. Rows join and leave between rounds, at most `rows` at a
    time.

    Calls that agree in drafter, sampling, acceptance and guidance share a batch; different batches take turns, round by
    round. Calls that find no room wait, `waiting` of them at most; one more raises `Busy`. Each call gets the tokens
    that it would have got alone. All drafters are loaded at once. One thread does all work on the target; `close` ends
    it.
    """

    def __init__(self, target: Target, folder: Path | None, rows: int = 16, waiting: int = 64):
        self.rows, self.waiting = rows, waiting
        self.target, self.folder = target, folder
        self.drafters = {name: drafters.by_name(name, folder, target) for name in drafters.usable(folder)}
        self.costs: dict[tuple[int, int], Cost] = {}
        # Called after each round, in the batcher's thread, with the batch and the statistics of the calls in it.
        self.on_round: Callable[[Batch, list[GenerationStats]], None] | None = None
        self._queue: list[Job] = []
        self._batches: dict[Hashable, SharedBatch] = {}
        self._taken = 0
        self._changed = Condition()
        self._open = True
        self._thread = Thread(target=self._work, name="mmspec-batcher", daemon=True)
        self._thread.start()

    def measure(self, prompts: Prompts, length: int) -> None:
        """Measure what passes cost here for 1, 2, 4, ... rows like the first of `prompts`: drafters spend their nodes
        by it.

        To be called before there is anything to do.
        """
        rows = 1
        while rows <= self.rows:
            repeated = prompts.repeat_first(rows)
            cost = measured(self.target, repeated, str(self.folder), length)
            self.costs[len(repeated.branches) // rows, rows] = cost
            rows *= 2

    @property
    def load(self) -> tuple[int, int]:
        """Rows that are generated, and calls that wait."""
        return self._taken, len(self._queue)

    @property
    def alive(self) -> bool:
        """Whether calls are still served."""
        return self._thread.is_alive()

    def __call__(
        self, target: Target, folder: Path | None, drafter: str | Drafter, prompts: Prompts, length: int
    ) -> Run:
        """See `pipelines.solo.Runner`; drafters go by name here, since one serves many calls."""
        if not isinstance(drafter, str):
            raise MmspecError("calls in a batch share a drafter: give its name, not an instance")
        if drafter not in self.drafters:
            if drafter in drafters.names():
                drafters.by_name(drafter, folder, target)  # says what is wrong
            elif drafter in drafters.usable(folder):
                raise MmspecError(f"drafter {drafter!r} came after the model was loaded: start again")
            # Who asks a server does not make it read folders, or fetch from a hub.
            raise unknown("drafter", drafter, self.drafters)
        admitted = False

        def run(
            prompts: Prompts,
            rows: int,
            stop: Stop,
            *,
            sampling: SamplingOptions,
            seeds: list[int],
            rule: AcceptanceRule,
            stats: GenerationStats,
            cancel: Callable[[], bool] = lambda: False,
        ) -> Iterator[Round]:
            nonlocal admitted
            if rows > self.rows:
                raise MmspecError(f"{rows} rows were asked for and a batch has {self.rows}: ask for fewer at once")
            key = batch_key(drafter, sampling, rule, prompts)
            job = Job(key, drafter, prompts, stop, seeds, sampling, rule, stats)
            self._submit(job, admitted)
            admitted = True
            try:
                while not cancel():
                    try:
                        result = job.rounds.get(timeout=POLL_SECONDS)
                    except Empty:
                        continue
                    if result is None:
                        return
                    if isinstance(result, Exception):
                        raise result
                    yield result
            finally:
                job.abandoned = True

        return run

    def close(self) -> None:
        """End the thread; calls that are not done raise."""
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join()

    def _submit(self, job: Job, admitted: bool) -> None:
        """Queue a job; what a call goes on with after its first job (`admitted`) is never turned away."""
        with self._changed:
            if not self._open:
                raise Closing(CLOSED)
            fits = not self._queue and self._taken + len(job.seeds) <= self.rows
            if not (admitted or fits) and len(self._queue) >= self.waiting:
                raise Busy(f"{len(self._queue)} calls are waiting already: ask again later")
            self._queue.append(job)
            self._changed.notify()

    def _work(self) -> None:
        joining: list[Job] = []
        try:
            while True:
                with self._changed:
                    if not self._changed.wait_for(self._has_work, timeout=IDLE):
                        release_free_memory()
                        self._changed.wait_for(self._has_work)
                    if not self._open:
                        return
                    joining = self._take_jobs()
                for job in joining:
                    self._admit(job)
                for key in list(self._batches):
                    self._round(key)
        finally:
            with self._changed:
                self._open = False
            running = (job for shared in self._batches.values() for job, _ in shared.owners)
            self._fail([*joining, *self._queue, *running], Closing(CLOSED))

    def _has_work(self) -> bool:
        """Whether the thread has something to do."""
        return bool(not self._open or self._queue or self._batches)

    def _take_jobs(self) -> list[Job]:
        """Take from the queue, in order, what finds room."""
        taken: list[Job] = []
        waiting: list[Job] = []
        for job in self._queue:
            if job.abandoned:
                continue
            if not waiting and self._taken + len(job.seeds) <= self.rows:
                self._taken += len(job.seeds)
                taken.append(job)
            else:
                waiting.append(job)
        self._queue = waiting
        return taken

    def _admit(self, job: Job) -> None:
        """The job's rows join a batch and get their first tokens.

        If that fails midway, the batch and all in it are lost.
        """
        present = self._batches.get(job.batch_key)
        try:
            shared = present or SharedBatch(
                Batch(self.target, fresh(self.drafters[job.drafter]), job.sampling, job.rule)
            )
            result = shared.batch.join(job.prompts, job.seeds, job.stop)
            self._tell_cost(shared.batch)
        except Exception as error:
            self._taken -= len(job.seeds)
            self._fail([job], error)
            if present and present.batch.rows is None:
                self._lose(job.batch_key, error)
            return
        rule, chains_only = job.rule, self.target.chains_only
        job.stats.begin(shared.batch.drafter.name, rule.name, rule.lossless, len(job.seeds), chains_only)
        shared.owners += [(job, row) for row in range(len(job.seeds))]
        self._batches[job.batch_key] = shared
        self._deliver(job.batch_key, result)

    def _round(self, key: Hashable) -> None:
        """A round of one batch."""
        shared = self._batches[key]
        try:
            result = shared.batch.round()
            if self.on_round:
                calls = dict.fromkeys(job for job, _ in shared.owners)
                self.on_round(shared.batch, [job.stats for job in calls])
        except Exception as error:
            self._lose(key, error)
            return
        self._deliver(key, result)

    def _deliver(self, key: Hashable, result: Round) -> None:
        """Every call gets the tokens of its rows, and rows that are done leave."""
        shared = self._batches[key]
        owners = shared.owners
        staying = [row for row, (job, _) in enumerate(owners) if result.running[row] and not job.abandoned]
        try:
            if len(staying) < len(owners):
                shared.batch.keep(staying)
                self._tell_cost(shared.batch)
        except Exception as error:
            self._lose(key, error)
            return
        parts: dict[Job, list[list[int]]] = {}
        for (job, row), new in zip(owners, result.tokens):
            parts.setdefault(job, [[] for _ in job.seeds])[row] = new
        shared.owners = [owners[row] for row in staying]
        self._taken -= len(owners) - len(staying)
        going_on = {job for job, _ in shared.owners}
        for job, tokens in parts.items():
            if any(tokens):
                job.stats.add(tokens, result.nodes, result.cache_bytes, result.seconds)
                job.rounds.put(replace(result, tokens=tokens))
            if job not in going_on:
                job.rounds.put(None)
        if not staying:
            del self._batches[key]

    def _lose(self, key: Hashable, error: Exception) -> None:
        """A batch failed: so do all calls in it."""
        shared = self._batches.pop(key)
        self._taken -= len(shared.owners)
        self._fail([job for job, _ in shared.owners], error)

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        for job in dict.fromkeys(jobs):
            job.rounds.put(error)

    def _tell_cost(self, batch: Batch) -> None:
        """Tell a drafter whose number of nodes is not fixed what passes of about so many rows cost here."""
        state = batch.state
        if state and not batch.drafter.nodes:
            measured_rows = (rows for branches, rows in self.costs if branches == state.branches)
            nearest = min(measured_rows, key=lambda rows: abs(rows - state.rows), default=0)
            batch.drafter.cost = self.costs.get((state.branches, nearest))
