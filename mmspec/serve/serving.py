"""What every endpoint shares: models, limits, and following a generation from an event loop."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from time import monotonic
from types import MappingProxyType
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from fastapi.responses import StreamingResponse

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

# The most characters of a text to speak, and of a prompt for a picture, in OpenAI's API; the latter for a chat, too.
SPEECH_CHARACTERS, PROMPT_CHARACTERS = 4096, 32_000

# Endpoints that stream answer events too.
EVENTS: dict[int | str, dict] = {200: {"content": {"text/event-stream": {}}}}


@dataclass(frozen=True, slots=True)
class Limits:
    """Rows in a batch and calls that wait for each model; and of a request: seconds, bytes of its body, characters
    (OpenAI's limits if None), pictures and their pixels."""

    rows: int = 16
    waiting: int = 64
    seconds: float = 300.0
    body: int = 20_000_000
    text: int | None = None
    pictures: int = 8
    pixels: int = 16_000_000


class Serving:
    """Models by name, limits, whether addresses are fetched, names that the server answers to (any if there are none),
    and other names of models.
    """

    def __init__(
        self,
        pipes: dict[str, tuple[str, Pipeline]],
        limits: Limits = Limits(),
        api_key: str | None = None,
        urls: bool = False,
        hosts: frozenset[str] = frozenset(),
        aliases: Mapping[str, str] = MappingProxyType({}),
    ):
        for alias, name in aliases.items():
            if alias in pipes:
                raise MmspecError(f"alias {alias}={name}: a model of that name is served: give another alias")
            if name not in pipes:
                raise MmspecError(f"alias {alias}={name}: {name} is not served: there is {', '.join(pipes)}")
        self.aliases = aliases
        self.limits, self.api_key, self.urls, self.hosts = limits, api_key, urls, hosts
        self.models = {
            name: host(name, task, pipe, limits.rows, limits.waiting) for name, (task, pipe) in pipes.items()
        }
        self.metrics = PrometheusMetrics(self.models.values())
        self._threads: CapacityLimiter | None = None

    @property
    def names(self) -> dict[str, HostedModel]:
        """Models by name and alias."""
        return self.models | {alias: self.models[name] for alias, name in self.aliases.items()}

    def model(self, name: str | None, task: str, request: Request) -> HostedModel:
        """The model of that name, the task's first if None; the request's line in the log names it."""
        models = {key: model for key, model in self.names.items() if model.task == task}
        if name is None and models:
            name = next(iter(models))
        if name not in models:
            names = ", ".join(models) or "none"
            text = f"no model {name!r} for {task} is served here: there is {names}; leave model out, or add an --alias"
            raise Refusal(404, text, "model_not_found")
        request.state.model = models[name].name
        return models[name]

    def check_text(self, name: str, text: str, most: int) -> str:
        """The text of a request. Raises Refusal for one of more than `most` characters, or than the limit if there is
        one.
        """
        most = self.limits.text or most
        if len(text) > most:
            raise Refusal(400, f"{name} has {len(text)} characters, and {most} are the most: shorten it")
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


async def prime(parts: AsyncIterator[Part]) -> tuple[Part, AsyncIterator[Part]]:
    """The first part, and all of them: what goes wrong before there is one has a status."""
    first = await anext(parts)

    async def again() -> AsyncIterator[Part]:
        yield first
        async for part in parts:
            yield part

    return first, again()


async def told_errors(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """The same events; what goes wrong in the middle of them is the last one."""
    try:
        async for part in events:
            yield part
    except Exception as error:
        expected = isinstance(error, MmspecError)
        body = error_response(error if expected else Refusal(500, FAILED)).body
        yield f"data: {bytes(body).decode()}\n\n"
        if not expected:
            raise


async def event_stream(events: AsyncIterator[str]) -> StreamingResponse:
    """The response that sends events, once there is the first."""
    _, primed = await prime(events)
    return StreamingResponse(told_errors(primed), media_type="text/event-stream")
