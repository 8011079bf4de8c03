"""What every endpoint shares: models, limits, errors, and following a generation from an event loop."""

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic, time
from typing import Any, TypeVar

import torch
from anyio import CapacityLimiter, to_thread
from fastapi import Request
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from pydantic import BaseModel, ConfigDict, model_validator

from mmspec import zoo
from mmspec.engine.stats import GenerationStats
from mmspec.errors import MmspecError
from mmspec.pipelines import pipeline, task_of
from mmspec.serve.batcher import Batcher, Busy, Closing, share

Part = TypeVar("Part")

# Seconds between looks whether a client is still there.
LOOK = 0.2


class Refusal(MmspecError):
    """A request that is answered with an error of this HTTP status."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


class Shape(BaseModel):
    """A request body: a field that is not known is an error, not ignored; null is as if left out."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


class Problem(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """What every error looks like."""

    error: Problem


# What any endpoint may answer beside what was asked for.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request is wrong; the message says how."},
    401: {"model": ErrorBody, "description": "The API key is missing or wrong."},
    404: {"model": ErrorBody, "description": "No such model."},
    408: {"model": ErrorBody, "description": "The body did not come in time."},
    413: {"model": ErrorBody, "description": "The body is too large."},
    429: {"model": ErrorBody, "description": "The queue is full: ask again after Retry-After seconds."},
    503: {"model": ErrorBody, "description": "The server is shutting down, or a model has stopped."},
    504: {"model": ErrorBody, "description": "The request took longer than the server allows."},
}


# Endpoints that stream answer events too.
EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


class Speculation(BaseModel):
    """What drafting gained, for one request."""

    drafter: str
    acceptance: str
    lossless: bool
    tokens: int
    rounds: int
    mean_acceptance_length: float
    accepted_draft_tokens: int
    nodes_per_round: float
    tokens_per_second: float
    seconds: dict[str, float]


class Metrics(BaseModel):
    speculative_decoding: Speculation


@dataclass(frozen=True, slots=True)
class Limits:
    """Rows in a batch and calls that wait for each model; of a request: seconds, bytes of its body, characters, pictures and their pixels."""

    rows: int = 16
    waiting: int = 64
    seconds: float = 300.0
    body: int = 20_000_000
    text: int = 4000
    pictures: int = 8
    pixels: int = 16_000_000


class Gauges:
    """What Prometheus reads, in a registry of its own."""

    def __init__(self, models: "dict[str, Model]"):
        self.registry = CollectorRegistry()
        home = self.registry
        self.requests = Counter("mmspec_requests", "Requests by path and status", ("path", "status"), registry=home)
        self.seconds = Histogram(
            "mmspec_request_seconds", "Seconds until a request was answered", ("path",), registry=home
        )
        self.tokens = Counter("mmspec_tokens", "Tokens generated", ("model",), registry=home)
        self.rounds = Counter("mmspec_rounds", "Rounds that committed tokens of a request", ("model",), registry=home)
        running = Gauge("mmspec_rows_running", "Rows that are generated now", ("model",), registry=home)
        waiting = Gauge("mmspec_requests_waiting", "Calls that wait for a place", ("model",), registry=home)
        for name, model in models.items():
            running.labels(name).set_function(partial(lambda batcher: batcher.load[0], model.batcher))
            waiting.labels(name).set_function(partial(lambda batcher: batcher.load[1], model.batcher))


@dataclass(slots=True)
class Model:
    """A pipeline that is served, its task, and the batcher that all of its requests go through."""

    name: str
    task: str
    pipe: Any
    batcher: Batcher
    since: int = field(default_factory=lambda: int(time()))

    def seat(self) -> Any:
        """The pipeline for one request: the same parts and target, with an `interrupt` of its own."""
        return copy.copy(self.pipe)


class Serving:
    """Models by name, limits, whether addresses are fetched, and names that the server answers to (any if there are none)."""

    def __init__(
        self,
        pipes: dict[str, tuple[str, Any]],
        limits: Limits = Limits(),
        api_key: str | None = None,
        urls: bool = False,
        hosts: frozenset[str] = frozenset(),
    ):
        self.limits, self.api_key, self.urls, self.hosts = limits, api_key, urls, hosts
        self.models = {
            name: Model(name, task, pipe, share(pipe, limits.rows, limits.waiting))
            for name, (task, pipe) in pipes.items()
        }
        self.gauges = Gauges(self.models)
        self._threads: CapacityLimiter | None = None

    def model(self, name: str | None, task: str) -> Model:
        """The model of that name, the task's first if None."""
        known = {key: model for key, model in self.models.items() if model.task == task}
        if name is None and known:
            return next(iter(known.values()))
        if name not in known:
            has = ", ".join(known) or "none"
            raise Refusal(404, f"no model {name!r} for {task} is served here: there is {has}", "model_not_found")
        return known[name]

    def text(self, name: str, text: str) -> str:
        """A text of a request that is not too long."""
        if len(text) > self.limits.text:
            raise Refusal(400, f"{name} has {len(text)} characters, and {self.limits.text} are the most: shorten it")
        return text

    async def follow(
        self, request: Request, pipe: Any, make: Callable[[], Iterator[Part]], streams: bool
    ) -> AsyncIterator[Part]:
        """The parts of a blocking iterator, made and advanced in threads. It is interrupted when the client leaves or time is up; then
        this raises. A response that `streams` notices by itself who leaves, once it has begun."""
        until, end, begun = monotonic() + self.limits.seconds, object(), False

        async def step(work: Callable[[], Any]) -> Any:
            task = asyncio.ensure_future(self.thread(work))
            while not task.done():
                await asyncio.wait({task}, timeout=LOOK)
                if monotonic() > until or (not (streams and begun) and await request.is_disconnected()):
                    pipe.interrupt = True
            found = task.result()
            if pipe.interrupt and monotonic() <= until:
                raise Refusal(499, "the client has left")
            if pipe.interrupt:
                raise Refusal(504, f"the request took more than {self.limits.seconds:g} s and was ended: ask for less")
            return found

        try:
            iterator = await step(make)
            while (part := await step(lambda: next(iterator, end))) is not end:
                begun = True
                yield part
        finally:
            pipe.interrupt = True

    async def thread(self, work: Callable[[], Part]) -> Part:
        """What `work` returns, run in a thread."""
        self._threads = self._threads or CapacityLimiter(4 * (self.limits.rows + self.limits.waiting))
        return await to_thread.run_sync(work, limiter=self._threads)

    def report(self, model: Model, stats: GenerationStats) -> Metrics:
        """Statistics of a request that is done, counted once."""
        self.gauges.tokens.labels(model.name).inc(stats.tokens)
        self.gauges.rounds.labels(model.name).inc(stats.rounds)
        taken = sum(map(len, stats.runs))
        facts = stats.as_dict()
        return Metrics(
            speculative_decoding=Speculation(
                **{name: facts[name] for name in Speculation.model_fields.keys() & facts.keys()},
                accepted_draft_tokens=stats.tokens - taken,
            )
        )


def load(names: Sequence[str], device: str, dtype: torch.dtype) -> dict[str, tuple[str, Any]]:
    """Tasks and pipelines of models by name; of every bundled one if none is named."""
    found = {}
    for name in names or zoo.bundled():
        task = task_of(zoo.resolve(name, bare=True))
        short = Path(name).name
        if short in found:
            raise MmspecError(f"two models are called {short}: rename one of their folders")
        found[short] = (task, pipeline(task, name, device=device, dtype=dtype))
    if not found:
        raise MmspecError("no model is bundled here: name one")
    return found


def event(data: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(data)}\n\n"


async def last(parts: AsyncIterator[Part]) -> Part:
    """The last part, when all have come."""
    found = await anext(parts)
    async for part in parts:
        found = part
    return found


async def started(parts: AsyncIterator[Part]) -> AsyncIterator[Part]:
    """The same parts once the first is there: what goes wrong before it has a status, what goes wrong later is the last event."""
    first = await anext(parts)

    async def rest() -> AsyncIterator[Any]:
        yield first
        try:
            async for part in parts:
                yield part
        except Exception as error:
            if not isinstance(first, str):
                raise  # sound that is cut short must not look whole
            known = isinstance(error, MmspecError)
            yield f"data: {bytes(refused(error if known else Refusal(500, FAILED)).body).decode()}\n\n"
            if not known:
                raise

    return rest()


FAILED = "the server failed on this request; its log says why"


def refused(error: Exception) -> JSONResponse:
    """The answer to a request that failed."""
    status, code, headers = 503 if isinstance(error, Closing) else 400, None, {}
    if isinstance(error, Refusal):
        status, code = error.status, error.code
    elif isinstance(error, Busy):
        status, code, headers = 429, "queue_full", {"Retry-After": "2"}
    kind = "invalid_request_error" if status < 429 else "rate_limit_error" if status == 429 else "server_error"
    return JSONResponse({"error": {"message": str(error), "type": kind, "param": None, "code": code}}, status, headers)
