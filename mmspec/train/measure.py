"""How many tokens a drafter has accepted on prompts that it was not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmspec.drafters.base import Drafter
from mmspec.engine.loop import generate
from mmspec.engine.stats import GenerationStats
from mmspec.train.corpus import Corpus

# Draft tokens of a tree that one pass verifies, the same for every drafter that is compared.
NODES = 16


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a drafter did on some prompts, one after the other.

    `by_depth[k]` is the share of rounds that accepted more than k draft tokens.
    """

    name: str
    acceptance_length: float
    by_depth: list[float]
    tokens: int
    tokens_per_second: float

    @classmethod
    def of(cls, name: str, stats: GenerationStats) -> "Measurement":
        rounds = [accepted for row in stats.runs for accepted in row]
        depths = range(1, max(rounds, default=1))
        shares = [sum(accepted > depth for accepted in rounds) / len(rounds) for depth in depths]
        return cls(name, stats.mean_acceptance_length, shares, stats.tokens, stats.tokens_per_second)


def measure(corpus: Corpus, drafter: Drafter, rows: Sequence[int], name: str, length: int | None = None) -> Measurement:
    """Let the target answer these prompts with a drafter, at most `length` tokens each, as the corpus samples."""
    parts, pipe = [], corpus.pipe
    if drafter.max_nodes:
        drafter.nodes = NODES
    for row in rows:
        prompts, stop = corpus.encode([row])
        longest = min(filter(None, (stop.length, corpus.settings.length, length)))
        guided = prompts.select(slice(None), float(corpus.rows[row].get("guidance", corpus.guidance)))
        options = dict(sampling=corpus.options, seeds=corpus.settings.seed + row)
        parts.append(generate(pipe.target, guided, 1, replace(stop, length=longest), drafter, **options).stats)  # type: ignore[arg-type]
    return Measurement.of(name, GenerationStats.sum(parts))
