"""The rows of a batch: what each has generated, with which seed, and when it ends."""

from collections.abc import Callable
from dataclasses import dataclass, field

from mmspec.engine.accept import Committed
from mmspec.engine.noise import Noise
from mmspec.engine.state import State


@dataclass(frozen=True, slots=True)
class Stop:
    """When a row ends: after `length` tokens, at one of the `eos` tokens, or when `when(row, tokens)` says so."""

    length: int
    eos: frozenset[int] = frozenset()
    when: Callable[[int, list[int]], bool] | None = None

    def trim(self, row: int, before: list[int], new: list[int]) -> tuple[list[int], bool]:
        """The part of `new` that still belongs to the row, and whether the row ends with it."""
        committed: list[int] = []
        for token in new[: self.length - len(before)]:
            committed.append(token)
            if token in self.eos or (self.when and self.when(row, before + committed)):
                return committed, True
        return committed, len(before) + len(committed) >= self.length


@dataclass(slots=True)
class Rows:
    """Rows that are generated together.

    `stops` has, for each row, its end and its number among those that came with it.
    """

    state: State
    seeds: list[int]
    stops: list[tuple[Stop, int]]
    running: list[bool]
    vocabulary_size: int
    greedy: bool
    noise: Noise = field(init=False)

    def __post_init__(self) -> None:
        self._reseed()

    def _reseed(self) -> None:
        device = self.state.roots.device
        self.noise = Noise(self.seeds, self.vocabulary_size, device, self.greedy)

    @property
    def end_tokens(self) -> frozenset[int]:
        """All tokens that end a row."""
        return frozenset().union(*(stop.eos for stop, _ in self.stops))

    @property
    def room(self) -> int:
        """Tokens that the row which has most to go may still generate."""
        counts = zip(self.stops, self.state.counts, self.running)
        return max((stop.length - count for (stop, _), count, running in counts if running), default=0)

    def trim(self, accepted: Committed) -> Committed:
        """The part of an accepted path that comes before each row's end; rows that end there stop running."""
        trimmed = [
            stop.trim(row, before, new) if running else ([], True)
            for (stop, row), before, new, running in zip(
                self.stops, self.state.tokens, accepted.tokens, self.running, strict=True
            )
        ]
        self.running = [not over for _, over in trimmed]
        tokens = [committed for committed, _ in trimmed]
        paths = [path[: len(new)] for path, new in zip(accepted.paths, tokens)]
        return Committed(paths, tokens, accepted.samples)

    def keep(self, rows: list[int]) -> None:
        """These rows in this order; all others leave."""
        self.state.keep(rows)
        self.seeds, self.stops = [self.seeds[row] for row in rows], [self.stops[row] for row in rows]
        self.running = [self.running[row] for row in rows]
        self._reseed()

    def join(self, other: "Rows") -> None:
        """The rows of another batch of the same target come after the present ones."""
        self.state.join(other.state)
        self.seeds, self.stops = self.seeds + other.seeds, self.stops + other.stops
        self.running = self.running + other.running
        self._reseed()
