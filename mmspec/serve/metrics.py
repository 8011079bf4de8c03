"""What is counted: for Prometheus, and in each answer."""

from collections.abc import Iterable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from pydantic import BaseModel

from mmspec.engine.stats import GenerationStats
from mmspec.serve.batcher import Batcher
from mmspec.serve.hosting import HostedModel


class Speculation(BaseModel):
    """What drafting gained, for one request."""

    drafter: str
    acceptance: str
    lossless: bool
    chains_only: bool
    tokens: int
    rounds: int
    mean_acceptance_length: float
    accepted_draft_tokens: int
    nodes_per_round: float
    tokens_per_second: float
    seconds: dict[str, float]


class Metrics(BaseModel):
    """The field `metrics` of an answer."""

    speculative_decoding: Speculation


def running_rows(batcher: Batcher) -> int:
    """Rows that are generated now."""
    return batcher.load[0]


def waiting_calls(batcher: Batcher) -> int:
    """Calls that find no room."""
    return batcher.load[1]


class PrometheusMetrics:
    """What Prometheus reads, in a registry of its own."""

    def __init__(self, models: Iterable[HostedModel]):
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("mmspec_requests", "Requests by path and status", ("path", "status"), registry=registry)
        self.seconds = Histogram(
            "mmspec_request_seconds", "Seconds until a request was answered", ("path",), registry=registry
        )
        self.tokens = Counter("mmspec_tokens", "Tokens generated", ("model",), registry=registry)
        self.rounds = Counter(
            "mmspec_rounds", "Rounds that committed tokens of a request", ("model",), registry=registry
        )
        running = Gauge("mmspec_rows_running", "Rows that are generated now", ("model",), registry=registry)
        waiting = Gauge("mmspec_requests_waiting", "Calls that wait for a place", ("model",), registry=registry)
        for model in models:
            running.labels(model.name).set_function(partial(running_rows, model.batcher))
            waiting.labels(model.name).set_function(partial(waiting_calls, model.batcher))

    def count(self, model: HostedModel, stats: GenerationStats) -> Metrics:
        """Count a request that is done, once, and say what it gained."""
        self.tokens.labels(model.name).inc(stats.tokens)
        self.rounds.labels(model.name).inc(stats.rounds)
        committing = sum(map(len, stats.runs))
        return Metrics(
            speculative_decoding=Speculation(
                **{key: value for key, value in stats.as_dict().items() if key in Speculation.model_fields},
                accepted_draft_tokens=stats.tokens - committing,
            )
        )
