"""Continuous batching: generations that are asked for at different times share the target's passes."""

import copy
import ctypes
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Condition, Thread
from typing import Any

from mmspec import drafters, zoo
from mmspec.engine.accept import AcceptanceRule
from mmspec.engine.cost import Cost, measured
from mmspec.engine.loop import Batch, Round, Stop
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.stats import GenerationStats
from mmspec.errors import MmspecError
from mmspec.pipelines.solo import Run

# Seconds after which one who waits for a round looks whether it was cancelled.
PATIENCE = 0.1

# Seconds without work after which free memory goes back to the system.
IDLE = 1.0


class Busy(MmspecError):
    """The queue is full: ask again later."""


class Closing(MmspecError):
    """Nothing is served any more."""


@dataclass(eq=False, slots=True)
class Job:
    """One call of the loop: rows that wait or are generated; `gone` once nobody listens any more."""

    law: tuple
    prompts: Any
    stop: Stop
    seeds: list[int]
    sampling: SamplingOptions
    rule: AcceptanceRule
    stats: GenerationStats
    rounds: SimpleQueue = field(default_factory=SimpleQueue)
    gone: bool = False


@dataclass(slots=True)
class Shared:
    """A batch, and for each of its rows the job that it belongs to and its number there."""

    batch: Batch
    seats: list[tuple[Job, int]] = field(default_factory=list)


class Batcher:
    """The `loop` of a pipeline that many threads use at once. Rows join and leave between rounds, `rows` of them at most at a time.

    Calls of one law (drafter, sampling, acceptance, guidance) share a batch; different laws take turns, round by round. Calls that
    find no place wait, `waiting` of them at most; one more raises `Busy`. Each call gets the tokens that it would have got alone.
    All drafters are loaded at once. One thread does all work on the target; `close` ends it.
    """

    def __init__(self, pipe: Any, rows: int = 16, waiting: int = 64):
        self.rows, self.waiting = rows, waiting
        self.target = pipe.target
        self.drafters = {
            name: drafters.by_name(name, pipe.folder, self.target) for name in drafters.usable(pipe.folder)
        }
        self.costs: dict[tuple[int, int], Cost] = {}
        self._queue: list[Job] = []
        self._batches: dict[tuple, Shared] = {}
        self._taken = 0
        self._changed = Condition()
        self._open = True
        self._thread = Thread(target=self._work, name="mmspec-batcher", daemon=True)
        self._thread.start()

    def measure(self, pipe: Any, prompts: Any, length: int) -> None:
        """Measure what passes cost here for 1, 2, 4, ... rows like the first of `prompts`: drafters spend their nodes by it. To be
        called before there is anything to do."""
        rows = 1
        while rows <= self.rows:
            each = prompts.repeat_first(rows)
            self.costs[len(each.branches) // rows, rows] = measured(self.target, each, str(pipe.folder), length)
            rows *= 2

    @property
    def load(self) -> tuple[int, int]:
        """Rows that are generated, and calls that wait."""
        return self._taken, len(self._queue)

    @property
    def alive(self) -> bool:
        """Whether calls are still served."""
        return self._thread.is_alive()

    def __call__(self, pipe: Any, drafter: Any, prompts: Any, length: int) -> Run:
        """See `pipelines.solo.Solo`; drafters go by name here, since one serves many calls."""
        if not isinstance(drafter, str):
            raise MmspecError("calls in a batch share a drafter: give its name, not an instance")
        if drafter not in self.drafters:
            drafters.by_name(drafter, pipe.folder, self.target)  # says what is wrong
            raise MmspecError(f"drafter {drafter!r} came after the model was loaded: start again")
        known = False

        def run(
            prompts: Any,
            rows: int,
            stop: Stop,
            *,
            sampling: SamplingOptions,
            seeds: list[int],
            rule: AcceptanceRule,
            stats: GenerationStats,
            cancel: Callable[[], bool] = lambda: False,
        ) -> Iterator[Round]:
            nonlocal known
            if rows > self.rows:
                raise MmspecError(f"{rows} rows were asked for and a batch has {self.rows}: ask for fewer at once")
            warped = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
            processors = tuple((type(one).__name__, repr(vars(one))) for one in sampling.processors)
            law = (
                drafter,
                warped,
                processors,
                rule,
                len(prompts.branches) // rows,
                prompts.guidance,
            )
            job = Job(law, prompts, stop, seeds, sampling, rule, stats)
            self._submit(job, known)
            known = True
            try:
                while not cancel():
                    try:
                        found = job.rounds.get(timeout=PATIENCE)
                    except Empty:
                        continue
                    if found is None:
                        return
                    if isinstance(found, BaseException):
                        raise found
                    yield found
            finally:
                job.gone = True

        return run

    def close(self) -> None:
        """End the thread; calls that are not done raise."""
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join()

    def _submit(self, job: Job, known: bool) -> None:
        """Queue a job; what a call goes on with after its first job (`known`) is never turned away."""
        with self._changed:
            if not self._open:
                raise Closing("nothing is served any more: ask again when the server is back")
            fits = not self._queue and self._taken + len(job.seeds) <= self.rows
            if not (known or fits) and len(self._queue) >= self.waiting:
                raise Busy(f"{len(self._queue)} calls are waiting already: ask again later")
            self._queue.append(job)
            self._changed.notify()

    def _work(self) -> None:
        joining: list[Job] = []
        try:
            while True:
                with self._changed:
                    if not self._changed.wait_for(self._busy, timeout=IDLE):
                        trim()
                        self._changed.wait_for(self._busy)
                    if not self._open:
                        return
                    joining = self._next()
                for job in joining:
                    self._admit(job)
                for law in list(self._batches):
                    self._turn(law)
        finally:
            with self._changed:
                self._open = False
            self._fail(
                [*joining, *self._queue, *(job for shared in self._batches.values() for job, _ in shared.seats)], None
            )

    def _busy(self) -> bool:
        """Whether the thread has something to do."""
        return bool(not self._open or self._queue or self._batches)

    def _next(self) -> list[Job]:
        """Take from the queue, in order, what finds a place."""
        found: list[Job] = []
        left: list[Job] = []
        for job in self._queue:
            if job.gone:
                continue
            if not left and self._taken + len(job.seeds) <= self.rows:
                self._taken += len(job.seeds)
                found.append(job)
            else:
                left.append(job)
        self._queue = left
        return found

    def _admit(self, job: Job) -> None:
        """Its rows join the batch of its law. If that fails midway the batch is lost, with all who are in it."""
        known = job.law in self._batches
        shared = self._batches.get(job.law) or Shared(
            Batch(self.target, copy.copy(self.drafters[job.law[0]]), job.sampling, job.rule)
        )
        seats = [(job, row) for row in range(len(job.seeds))]
        try:
            step = shared.batch.join(job.prompts, job.seeds, job.stop)
            self._budget(shared.batch)
        except Exception as error:
            self._taken -= len(seats)
            self._fail([job], error)
            if known and shared.batch.state is None:
                self._lose(job.law, error)
            return
        job.stats.begin(shared.batch.drafter.name, job.rule.name, job.rule.lossless, len(seats))
        shared.seats += seats
        self._batches[job.law] = shared
        self._deliver(job.law, step)

    def _turn(self, law: tuple) -> None:
        """A round of one batch."""
        try:
            step = self._batches[law].batch.round()
        except Exception as error:
            self._lose(law, error)
            return
        self._deliver(law, step)

    def _deliver(self, law: tuple, step: Round) -> None:
        """Every call gets the tokens of its rows, and rows that are done leave."""
        shared = self._batches[law]
        batch, seats = shared.batch, shared.seats
        staying = [row for row, (job, _) in enumerate(seats) if step.running[row] and not job.gone]
        try:
            if len(staying) < len(seats):
                batch.keep(staying)
                self._budget(batch)
        except Exception as error:
            self._lose(law, error)
            return
        parts: dict[Job, list[list[int]]] = {}
        for (job, row), new in zip(seats, step.tokens):
            parts.setdefault(job, [[] for _ in job.seeds])[row] = new
        shared.seats = [seats[row] for row in staying]
        self._taken -= len(seats) - len(staying)
        going_on = {job for job, _ in shared.seats}
        for job, tokens in parts.items():
            if any(tokens):
                job.stats.add(tokens, step.nodes, step.cache_bytes, step.seconds)
                job.rounds.put(replace(step, tokens=tokens))
            if job not in going_on:
                job.rounds.put(None)
        if not staying:
            del self._batches[law]

    def _lose(self, law: tuple, error: Exception) -> None:
        shared = self._batches.pop(law)
        self._taken -= len(shared.seats)
        self._fail([job for job, _ in shared.seats], error)

    def _fail(self, jobs: list[Job], error: Exception | None) -> None:
        for job in dict.fromkeys(jobs):
            job.rounds.put(error or Closing("nothing is served any more: ask again when the server is back"))

    def _budget(self, batch: Batch) -> None:
        """Tell a drafter that spends a node budget what passes of about so many rows cost here."""
        guesser, state = batch.drafter, batch.state
        if state and not guesser.nodes:
            near = min(
                (rows for branches, rows in self.costs if branches == state.branches),
                key=lambda rows: abs(rows - state.rows),
                default=0,
            )
            guesser.cost = self.costs.get((state.branches, near))


def trim() -> None:
    """Hand memory that is free back to the system, which glibc keeps otherwise."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def share(pipe: Any, rows: int, waiting: int) -> Batcher:
    """Make a pipeline ready for many at once: its batcher, what its copies share, and what passes cost here."""
    batcher = Batcher(pipe, rows, waiting)
    if hasattr(pipe, "voices"):
        _ = pipe.reader  # built now, for all copies
    prompts, stop = pipe.rows([example(pipe.folder)])
    for guidance in (0.0, 1.0) if prompts.unconditional else (1.0,):
        batcher.measure(pipe, prompts.select(slice(None), guidance), stop.length)
    pipe.loop = batcher
    return batcher


def example(folder: Path | None) -> dict:
    """A prompt of a model folder."""
    return zoo.prompts(folder)[0] if folder and (folder / zoo.PROMPTS).exists() else {"prompt": "a red heart"}
