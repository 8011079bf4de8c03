"""What plain decoding would do in a run's place: rounds without a draft, timed between the run's own."""

from collections import deque
from dataclasses import dataclass, field
from threading import Lock
from time import perf_counter
from weakref import WeakKeyDictionary

import torch

from mmspec.engine.accept import add_gumbel
from mmspec.engine.loop import Batch
from mmspec.engine.state import Prefixes
from mmspec.engine.stats import GenerationStats
from mmspec.engine.tree import root

# A plain round is timed after the first round of a batch and after every sixth that follows. Which ones must not depend
# on how long they took: those after long ones are long.
EVERY = 6

# Calls whose times are remembered; each sentence of a speech is one.
REMEMBERED = 256


@torch.inference_mode()
def time_plain_round(batch: Batch) -> float:
    """Seconds of a round without a draft for the rows of a batch, here and now. Nothing is committed."""
    rows = batch.rows
    assert rows is not None, "the batch has no rows"
    began = perf_counter()
    state, tree = rows.state, root(rows.state.roots)
    output = batch.target.forward(state, tree)
    scores = batch.sampling.scores(output.logits, Prefixes(state, tree) if batch.sampling.reads_prefix else None)
    gumbel_scores = add_gumbel(tree, scores, rows.noise, state.counts)
    protected = batch.target.protected | rows.end_tokens
    batch.rule(tree, scores, gumbel_scores, rows.noise, state.counts, protected).read()
    return perf_counter() - began


@dataclass(slots=True)
class Beside:
    """Seconds of the plain rounds that were timed beside a call."""

    stats: GenerationStats
    seconds: list[float] = field(default_factory=list)


class PlainTimer:
    """A batcher's `on_round`: times plain rounds beside all calls, in the same thread and with the same rows.

    Whatever else this machine does slows both alike, so that their ratio stays what it is on an idle machine.
    """

    def __init__(self) -> None:
        self._beside: deque[Beside] = deque(maxlen=REMEMBERED)
        self._rounds: WeakKeyDictionary[Batch, int] = WeakKeyDictionary()
        self._lock = Lock()

    def __call__(self, batch: Batch, calls: list[GenerationStats]) -> None:
        """A round of these calls has passed: time a plain one if it is due."""
        passed = self._rounds.get(batch, 0)
        self._rounds[batch] = passed + 1
        if passed % EVERY == 0:
            seconds = time_plain_round(batch)
            with self._lock:
                for stats in calls:
                    self._of(stats).seconds.append(seconds)

    def _of(self, stats: GenerationStats) -> Beside:
        """The times beside a call, which are made if there are none. A call is known by its statistics."""
        for beside in reversed(self._beside):
            if beside.stats is stats:
                return beside
        self._beside.append(Beside(stats))
        return self._beside[-1]

    def rate(self, calls: list[GenerationStats]) -> float | None:
        """Tokens per second of a row that plain decoding would have had in place of these calls; None if not timed yet.

        What a round needs beside the pass and the choice of tokens (committing, above all) is taken from the calls.
        """
        with self._lock:
            seconds = [
                second
                for beside in self._beside
                if any(beside.stats is stats for stats in calls)
                for second in beside.seconds
            ]
        if not seconds:
            return None
        rounds = sum(stats.rounds for stats in calls)
        other = sum(stats.seconds["other"] for stats in calls) / max(1, rounds)
        return 1 / (sum(seconds) / len(seconds) + other)
