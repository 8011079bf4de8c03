"""What a generation cost and gained, as data."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from itertools import zip_longest
from time import perf_counter
from typing import ParamSpec, Protocol, TypeVar, cast

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


PHASES = ("prefill", "draft", "target", "accept")


class Stopwatch:
    """Seconds spent in the phases of a round."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """A round begins."""
        self._seconds, self._began = dict.fromkeys(PHASES, 0.0), perf_counter()

    def add(self, phase: str, seconds: float) -> None:
        """Some seconds were spent in a phase."""
        self._seconds[phase] += seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase, and in `total` those since the round began."""
        return self._seconds | {"total": perf_counter() - self._began}


class Timed(Protocol):
    """An object whose methods are timed."""

    watch: Stopwatch


def timed(phase: str) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Count the time of a method of a `Timed` object as `phase`."""

    def decorate(method: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @wraps(method)
        def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            began = perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                cast(Timed, args[0]).watch.add(phase, perf_counter() - began)

        return run

    return decorate


@dataclass(slots=True, repr=False)
class GenerationStats:
    """Counts and seconds of one call.

    `mean_acceptance_length` is tokens committed per round and row, 1 + accepted draft tokens / rounds, the first
    token's round included (vLLM leaves it out, which says a little more). `runs[row]` lists how many tokens each round
    committed. `chains_only` says that drafts were cut to chains, as the target asks for (`Target.chains_only`).
    """

    drafter: str = "none"
    acceptance: str = "exact"
    lossless: bool = True
    prefill: float = 0.0
    draft: float = 0.0
    target: float = 0.0
    accept: float = 0.0
    total: float = 0.0
    nodes: int = 0
    cache_bytes: int = 0
    runs: list[list[int]] = field(default_factory=list)
    chains_only: bool = False

    @classmethod
    def sum(cls, parts: "list[GenerationStats]") -> "GenerationStats":
        """Calls with one drafter and rule, one after the other: row i of each goes on with row i of the next."""
        if not parts:
            return cls()
        first = parts[0]
        rows = zip_longest(*(part.runs for part in parts), fillvalue=[])
        return cls(
            drafter=first.drafter,
            acceptance=first.acceptance,
            lossless=first.lossless,
            prefill=sum(part.prefill for part in parts),
            draft=sum(part.draft for part in parts),
            target=sum(part.target for part in parts),
            accept=sum(part.accept for part in parts),
            total=sum(part.total for part in parts),
            nodes=sum(part.nodes for part in parts),
            cache_bytes=max(part.cache_bytes for part in parts),
            runs=[[run for runs in row for run in runs] for row in rows],
            chains_only=first.chains_only,
        )

    def begin(self, drafter: str, acceptance: str, lossless: bool, rows: int, chains_only: bool = False) -> None:
        """A generation of `rows` rows begins."""
        self.drafter, self.acceptance, self.lossless, self.chains_only = drafter, acceptance, lossless, chains_only
        self.runs = [[] for _ in range(rows)]

    def add(self, tokens: list[list[int]], nodes: int, cache_bytes: int, seconds: dict[str, float]) -> None:
        """A round passed: tokens committed in each row, nodes verified, memory held, and seconds by phase."""
        for runs, new in zip(self.runs, tokens):
            if new:
                runs.append(len(new))
        self.prefill += seconds["prefill"]
        self.draft += seconds["draft"]
        self.target += seconds["target"]
        self.accept += seconds["accept"]
        self.total += seconds["total"]
        self.nodes += nodes
        self.cache_bytes = max(self.cache_bytes, cache_bytes)

    def __repr__(self) -> str:
        return (
            f"GenerationStats({self.drafter}, {self.acceptance} ({'lossless' if self.lossless else 'NOT lossless'}), "
            f"{self.tokens} tokens in {self.rounds} rounds, mean acceptance length {self.mean_acceptance_length:.2f}, "
            f"{self.tokens_per_second:.0f} tokens/s{', chains only' if self.chains_only else ''})"
        )

    @property
    def tokens(self) -> int:
        return sum(map(sum, self.runs))

    @property
    def rounds(self) -> int:
        return max(map(len, self.runs), default=0)

    @property
    def mean_acceptance_length(self) -> float:
        return self.tokens / max(1, sum(map(len, self.runs)))

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.total if self.total else 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """The time split: draft, target (prefill included), accept, other."""
        target = self.target + self.prefill
        return {
            "draft": self.draft,
            "target": target,
            "accept": self.accept,
            "other": max(0.0, self.total - self.draft - target - self.accept),
        }

    @property
    def facts(self) -> dict[str, str]:
        """What the metadata of a file say of how it came about."""
        return {
            "drafter": self.drafter,
            "acceptance": self.acceptance,
            "lossless": "yes" if self.lossless else "no",
            "mean_acceptance_length": f"{self.mean_acceptance_length:.3f}",
        }

    def as_dict(self) -> dict:
        """Plain data for JSON and tables."""
        return {
            "drafter": self.drafter,
            "acceptance": self.acceptance,
            "lossless": self.lossless,
            "chains_only": self.chains_only,
            "tokens": self.tokens,
            "rounds": self.rounds,
            "nodes_per_round": self.nodes / max(1, self.rounds),
            "mean_acceptance_length": self.mean_acceptance_length,
            "tokens_per_second": self.tokens_per_second,
            "cache_bytes": self.cache_bytes,
            "seconds": self.seconds | {"total": self.total},
        }
