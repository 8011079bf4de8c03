"""What every endpoint shares: models, limits, and following a generation from an event loop."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from time import monotonic
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request

from mmspec.errors import MmspecError
from mmspec.pipelines.base import Pipeline
from mmspec.pipelines.session import Session
from mmspec.serve.errors import FAILED, Refusal, error_response
from mmspec.serve.hosting import HostedModel, host
from mmspec.serve.metrics import PrometheusMetrics

Part = TypeVar("Part")
Result = TypeVar("Result")

# Seconds between looks whether a client is still there.
DISCONNECT_POLL_SECONDS = 0.2

# Endpoints that stream answer events too.
EVENTS: dict[int | str, dict] = {200: {"content": {"text/event-stream": {}}}}


@dataclass(frozen=True, slots=True)
class Limits:
    """Rows in a batch and calls that wait for each model; and of a request: seconds, bytes of its body, characters,
    pictures and their pixels."""

    rows: int = 16
    waiting: int = 64
    seconds: float = 300.0
    body: int = 20_000_000
    text: int = 4000
    pictures: int = 8
    pixels: int = 16_000_000


class Serving:
    """Models by name, limits, whether addresses are fetched, and names that the server answers to (any if there are
    none).
    """

    def __init__(
        self,
        pipes: dict[str, tuple[str, Pipeline]],
        limits: Limits = Limits(),
        api_key: str | None = None,
        urls: bool = False,
        hosts: frozenset[str] = frozenset(),
    ):
        self.limits, self.api_key, self.urls, self.hosts = limits, api_key, urls, hosts
        self.models = {
            name: host(name, task, pipe, limits.rows, limits.waiting) for name, (task, pipe) in pipes.items()
        }
        self.metrics = PrometheusMetrics(self.models.values())
        self._threads: CapacityLimiter | None = None

    def model(self, name: str | None, task: str) -> HostedModel:
        """The model of that name, the task's first if None."""
        models = {key: model for key, model in self.models.items() if model.task == task}
        if name is None and models:
            return next(iter(models.values()))
        if name not in models:
            names = ", ".join(models) or "none"
            raise Refusal(404, f"no model {name!r} for {task} is served here: there is {names}", "model_not_found")
        return models[name]

    def check_text(self, name: str, text: str) -> str:
        """The text of a request. Raises Refusal for one that is too long."""
        if len(text) > self.limits.text:
            raise Refusal(400, f"{name} has {len(text)} characters, and {self.limits.text} are the most: shorten it")
        return text

    async def iterate_in_thread(
        self, request: Request, session: Session, start: Callable[[], Iterator[Part]], streams: bool
    ) -> AsyncIterator[Part]:
        """The parts of a blocking iterator, which is started and advanced in threads.

        The session is interrupted when the client leaves or time is up; then this raises. A response that `streams`
        notices by itself who leaves, once it has begun.
        """
        until, begun = monotonic() + self.limits.seconds, False

        async def run(work: Callable[[], Result]) -> Result:
            task = asyncio.ensure_future(self.thread(work))
            while not task.done():
                await asyncio.wait({task}, timeout=DISCONNECT_POLL_SECONDS)
                if monotonic() > until or (not (streams and begun) and await request.is_disconnected()):
                    session.interrupt = True
            result = task.result()
            if session.interrupt and monotonic() <= until:
                raise Refusal(499, "the client has left")
            if session.interrupt:
                raise Refusal(504, f"the request took more than {self.limits.seconds:g} s and was ended: ask for less")
            return result

        try:
            iterator = await run(start)
            while parts := await run(lambda: list(islice(iterator, 1))):
                begun = True
                yield parts[0]
        finally:
            session.interrupt = True

    async def thread(self, work: Callable[[], Result]) -> Result:
        """What `work` returns, run in a thread."""
        self._threads = self._threads or CapacityLimiter(4 * (self.limits.rows + self.limits.waiting))
        return await to_thread.run_sync(work, limiter=self._threads)


def event(data: dict) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(data)}\n\n"


async def drain(parts: AsyncIterator[Part]) -> Part:
    """The last part, when all have come."""
    last = await anext(parts)
    async for part in parts:
        last = part
    return last


async def prime(parts: AsyncIterator[Part]) -> AsyncIterator[Part]:
    """The same parts once the first is there.

    What goes wrong before it has a status; what goes wrong later is the last event.
    """
    first = await anext(parts)

    async def rest() -> AsyncIterator[Part]:
        yield first
        try:
            async for part in parts:
                yield part
        except Exception as error:
            if not isinstance(first, str):
                raise  # sound that is cut short must not look whole
            expected = isinstance(error, MmspecError)
            body = error_response(error if expected else Refusal(500, FAILED)).body
            yield f"data: {bytes(body).decode()}\n\n"  # type: ignore[misc]
            if not expected:
                raise

    return rest()
