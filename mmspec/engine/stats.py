"""What a generation cost and gained, as data."""

from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmspec.engine.accept import Acceptance
    from mmspec.engine.loop import Round


@dataclass(slots=True)
class GenerationStats:
    """Counts and seconds of one call.

    `mean_acceptance_length` is tokens committed per round and row, 1 + accepted draft tokens / rounds, the first token's round included
    (vLLM leaves it out, which says a little more). `runs[row]` lists how many tokens each round committed.
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

    @classmethod
    def sum(cls, parts: "list[GenerationStats]") -> "GenerationStats":
        """Calls with one drafter and rule one after the other: row i of each goes on with row i of the next."""
        first = parts[0]
        rows = zip_longest(*(part.runs for part in parts), fillvalue=[])
        found = cls(
            first.drafter,
            first.acceptance,
            first.lossless,
            runs=[[run for runs in row for run in runs] for row in rows],
        )
        for part in parts:
            for name in ("prefill", "draft", "target", "accept", "total", "nodes"):
                setattr(found, name, getattr(found, name) + getattr(part, name))
            found.cache_bytes = max(found.cache_bytes, part.cache_bytes)
        return found

    def begin(self, drafter: str, rule: "Acceptance", rows: int, prefill: float) -> None:
        """The prompts of `rows` rows were read."""
        self.drafter, self.acceptance, self.lossless = drafter, rule.name, rule.lossless
        self.runs = [[] for _ in range(rows)]
        self.prefill = prefill
        self.total += prefill

    def add(self, step: "Round", tokens: list[list[int]], cache_bytes: int) -> None:
        """A round passed, and committed `tokens` of these rows."""
        for runs, kept in zip(self.runs, tokens):
            if kept:
                runs.append(len(kept))
        self.draft += step.draft
        self.target += step.target
        self.accept += step.accept
        self.total += step.total
        self.nodes += step.nodes
        self.cache_bytes = max(self.cache_bytes, cache_bytes)

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
            "tokens": self.tokens,
            "rounds": self.rounds,
            "nodes_per_round": self.nodes / max(1, self.rounds),
            "mean_acceptance_length": self.mean_acceptance_length,
            "tokens_per_second": self.tokens_per_second,
            "cache_bytes": self.cache_bytes,
            "seconds": self.seconds | {"total": self.total},
        }
