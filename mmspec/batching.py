"""Continuous batching: generations that are asked for at different times share the target's passes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from threading import Condition, Thread
from time import perf_counter
from typing import Any

from mmspec import drafters
from mmspec.accept import Acceptance
from mmspec.decode import Batch, Round, Stop
from mmspec.drafters.cost import measured
from mmspec.errors import MmspecError
from mmspec.metrics import GenerationStats
from mmspec.pipelines.solo import Run
from mmspec.sampling import Sampling

# Seconds after which one who waits for a round looks whether it was cancelled.
PATIENCE = 0.1


class Busy(MmspecError):
    """The queue is full: ask again later."""


@dataclass(eq=False, slots=True)
class Job:
    """One call of the loop: rows that wait or are generated; `gone` once nobody listens any more."""

    law: tuple
    pipe: Any
    prompts: Any
    stop: Stop
    seeds: list[int]
    sampling: Sampling
    rule: Acceptance
    stats: GenerationStats
    rounds: SimpleQueue = field(default_factory=SimpleQueue)
    gone: bool = False


@dataclass(slots=True)
class Shared:
    """A batch, and for each of its rows the job that it belongs to and its number there."""

    batch: Batch
    seats: list[tuple[Job, int]] = field(default_factory=list)


class Batcher:
    """A pipeline's `loop` that serves many threads at once. Rows join and leave between rounds, `rows` of them at most at a time.

    Calls of one law (drafter, sampling, acceptance, guidance) share a batch; different laws take turns, round by round. Calls that
    find no place wait, `waiting` of them at most; one more raises `Busy`. Each call gets the tokens that it would have got alone.
    One thread does all work on the target; `close` ends it.
    """

    def __init__(self, rows: int = 16, waiting: int = 64):
        self.rows, self.waiting = rows, waiting
        self._queue: list[Job] = []
        self._batches: dict[tuple, Shared] = {}
        self._idle: dict[tuple, list[Any]] = {}
        self._changed = Condition()
        self._open = True
        self._thread = Thread(target=self._work, name="mmspec-batcher", daemon=True)
        self._thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """Rows that are generated, and calls that wait."""
        return sum(len(shared.seats) for shared in list(self._batches.values())), len(self._queue)

    @property
    def alive(self) -> bool:
        """Whether calls are still served."""
        return self._thread.is_alive()

    def __call__(self, pipe: Any, drafter: Any, prompts: Any, length: int) -> Run:
        """See `pipelines.solo.Solo`; drafters go by name here, since one instance serves many calls."""
        if not isinstance(drafter, str):
            raise MmspecError("calls in a batch share a drafter: give its name, not an instance")
        with self._changed:
            if (drafter, id(pipe.target)) not in self._idle:
                self._idle[drafter, id(pipe.target)] = [drafters.by_name(drafter, pipe.folder, pipe.target)]

        known = False

        def run(
            prompts: Any,
            rows: int,
            stop: Stop,
            *,
            sampling: Sampling,
            seeds: list[int],
            rule: Acceptance,
            stats: GenerationStats,
            cancel: Callable[[], bool] = lambda: False,
        ) -> Iterator[Round]:
            if rows > self.rows:
                raise MmspecError(f"{rows} rows were asked for and a batch has {self.rows}: ask for fewer at once")
            warped = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
            processors = tuple((type(one).__name__, repr(vars(one))) for one in sampling.processors)
            law = (id(pipe.target), drafter, warped, processors, rule.name, rule.options, len(prompts.streams) // rows, prompts.guidance)
            job = Job(law, pipe, prompts, stop, seeds, sampling, rule, stats)
            nonlocal known
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
                raise Busy("the server is shutting down: ask again later")
            if not known and len(self._queue) >= self.waiting + self.rows - self.load[0]:
                raise Busy(f"{len(self._queue)} calls are waiting already: ask again later")
            self._queue.append(job)
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._open and not self._queue and not self._batches:
                    self._changed.wait()
                if not self._open:
                    break
                joining = self._next()
            for job in joining:
                self._admit(job)
            for law in list(self._batches):
                self._turn(law)
        for job in [*self._queue, *(job for shared in self._batches.values() for job, _ in shared.seats)]:
            job.rounds.put(Busy("the server is shutting down: ask again later"))

    def _next(self) -> list[Job]:
        """Take from the queue, in order, what finds a place."""
        room, found, left = self.rows - self.load[0], [], []
        for job in self._queue:
            if job.gone:
                continue
            if len(job.seeds) <= room:
                room -= len(job.seeds)
                found.append(job)
            else:
                room = 0  # nobody overtakes
                left.append(job)
        self._queue = left
        return found

    def _admit(self, job: Job) -> None:
        shared, began = self._batches.get(job.law), perf_counter()
        try:
            if shared is None:
                shared = Shared(Batch(job.pipe.target, self._guesser(job.law[1], job.pipe), job.sampling, job.rule))
            shared.batch.join(job.prompts, job.seeds, job.stop)
        except Exception as error:
            job.rounds.put(error)
            return
        self._batches[job.law] = shared
        shared.seats += [(job, row) for row in range(len(job.seeds))]
        job.stats.begin(shared.batch.drafter.name, job.rule, len(job.seeds), perf_counter() - began)
        self._budget(shared, job)

    def _turn(self, law: tuple) -> None:
        """A round of one batch: everybody gets what is theirs, and those who are done leave."""
        shared = self._batches[law]
        batch, seats = shared.batch, shared.seats
        try:
            step = batch.round()
        except Exception as error:
            for job in {job for job, _ in seats}:
                job.rounds.put(error)
            del self._batches[law]
            return
        parts: dict[Job, list[list[int]]] = {}
        for (job, row), new in zip(seats, step.tokens):
            parts.setdefault(job, [[] for _ in job.seeds])[row] = new
        staying = [place for place, (job, _) in enumerate(seats) if step.running[place] and not job.gone]
        shared.seats = [seats[place] for place in staying]
        going_on = {job for job, _ in shared.seats}
        held = batch.state.cache.bytes if batch.state else 0
        for job, tokens in parts.items():
            job.stats.add(step, tokens, held)
            job.rounds.put(replace(step, tokens=tokens))
            if job not in going_on:
                job.rounds.put(None)
        if len(staying) < len(seats):
            batch.keep(staying)
        if not staying:
            del self._batches[law]
            self._idle[law[1], law[0]].append(batch.drafter)

    def _guesser(self, name: str, pipe: Any) -> Any:
        idle = self._idle[name, id(pipe.target)]
        return idle.pop() if idle else drafters.by_name(name, pipe.folder, pipe.target)

    def _budget(self, shared: Shared, job: Job) -> None:
        """Tell a drafter that spends a node budget what passes of so many rows cost here."""
        guesser: Any = shared.batch.drafter
        if hasattr(guesser, "cost") and not guesser.nodes:
            rows = 1 << (len(shared.seats) - 1).bit_length()
            guesser.cost = measured(job.pipe.target, job.prompts.alike(rows), str(job.pipe.folder), job.stop.length)
