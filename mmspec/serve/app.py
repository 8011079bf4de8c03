"""The application: routes, the API key, limits of bodies, and what is wrong in words."""

import asyncio
import hmac
import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Literal
from uuid import uuid4

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmspec import __version__, drafters
from mmspec.errors import MmspecError
from mmspec.serve import chat, images, speech
from mmspec.serve.errors import ERROR_RESPONSES, FAILED, Refusal, error_response
from mmspec.serve.hosting import HostedModel
from mmspec.serve.serving import Serving

ROUTERS = {"text-to-image": images.router, "text-to-speech": speech.router, "image-text-to-text": chat.router}

PATHS = {
    "text-to-image": ("/v1/images/generations",),
    "text-to-speech": ("/v1/audio/speech",),
    "image-text-to-text": ("/v1/chat/completions",),
}

# Paths that need no API key.
OPEN = ("/", "/health", "/docs", "/openapi.json")
ASSETS = "/static-offline-docs/"

# Headers that programs in a browser may read.
EXPOSED = ("x-request-id", "x-mmspec-unsaid", "retry-after")

# Ids of requests that are taken over: they go into the log and into headers.
REQUEST_ID = re.compile(rb"[\w.:-]{1,128}")

log = logging.getLogger("mmspec.serve")


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "mmspec"
    task: str
    drafters: list[str]
    voices: list[str] | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    version: str = __version__
    models: list[str]


class AuthAndLimits:
    """Turns away bodies that are too large or too slow, foreign host names, and requests without the API key if there
    is one.

    It counts what was answered, too, gives each request an id (its own `x-request-id`, if it has one) and writes a line
    in the log about it.
    """

    def __init__(self, app: ASGIApp, serving: Serving):
        self.app, self.serving = app, serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, answered = monotonic(), {"status": 500, "begun": False}
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        name = given if REQUEST_ID.fullmatch(given) else f"req_{uuid4().hex}".encode()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered.update(status=message["status"], begun=True)
                message["headers"] = [*message.get("headers", []), (b"x-request-id", name)]
            await asyncio.wait_for(send(message), self.serving.limits.seconds)  # who does not read is not waited for

        try:
            await self._pass(scope, receive, counted)
        except Exception:  # answered here, so that the answer has its id and what browsers need
            log.exception("%s failed", name.decode())
            if answered["begun"]:
                raise
            await error_response(Refusal(500, FAILED))(scope, receive, counted)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.serving.metrics.requests.labels(path, str(answered["status"])).inc()
            self.serving.metrics.seconds.labels(path).observe(monotonic() - began)
            client, model = scope.get("client") or ("-",), scope.get("state", {}).get("model", "-")
            asked = f"{scope['method']} {scope['path']!a}".replace("'", "")
            seconds = monotonic() - began
            log.info("%s %s %d %.3f s %s %s", client[0], asked, answered["status"], seconds, model, name.decode())

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {key.lower(): value for key, value in scope["headers"]}
        key, most, read = self.serving.api_key, self.serving.limits.body, 0
        host = re.sub(r":\d+$", "", headers.get(b"host", b"").decode("latin-1"))
        if self.serving.hosts and not any(matches(host, pattern) for pattern in self.serving.hosts):
            return await error_response(Refusal(400, "this server does not answer to that host name"))(
                scope, receive, send
            )
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if key is not None and path not in OPEN and not path.startswith(ASSETS):
            sent = headers.get(b"authorization", b"")
            if not hmac.compare_digest(sent, b"Bearer " + key.encode()):
                return await error_response(
                    Refusal(401, "the API key is missing or wrong: send Authorization: Bearer KEY")
                )(scope, receive, send)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > most:
            return await error_response(Refusal(413, f"the body has more than {most} bytes: send less"))(
                scope, receive, send
            )

        until, whole = monotonic() + self.serving.limits.seconds, False

        async def limited() -> Message:
            nonlocal read, whole
            try:
                message = await (receive() if whole else asyncio.wait_for(receive(), max(0.1, until - monotonic())))
            except TimeoutError:
                raise HTTPException(408, "the body did not come: send it faster") from None
            whole = not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > most:
                raise HTTPException(413, f"the body has more than {most} bytes: send less")
            return message

        await self.app(scope, limited, send)


def matches(host: str, pattern: str) -> bool:
    """Whether a host name is the one that is allowed, or one below `*.` of it; `*` allows any."""
    host, pattern = host.lower(), pattern.lower()
    return pattern in ("*", host) or (pattern.startswith("*.") and host.endswith(pattern[1:]))


def card(name: str, model: HostedModel) -> ModelCard:
    """A model as the list shows it, under one of its names."""
    pipe = model.pipe
    return ModelCard(
        id=name,
        created=model.since,
        task=model.task,
        drafters=drafters.usable(pipe.folder),
        voices=list(pipe.voices) or None,
    )


def absent(task: str, served: set[str]) -> APIRouter:
    """The endpoints of a task that the server has no model for; they say so."""
    routes = APIRouter()

    async def refuse() -> None:
        raise Refusal(
            404,
            f"no model for {task} is served here, only for {', '.join(sorted(served))}: start the server with one",
            "model_not_found",
        )

    for path in PATHS[task]:
        routes.add_api_route(path, refuse, methods=["POST"])
    return routes


def application(serving: Serving, origins: Sequence[str] = (), root_path: str = "") -> FastAPI:
    """The server's ASGI application; models stop when it does.

    Pages of the `origins` may call it from a browser, and a proxy serves it below `root_path`.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        for model in serving.models.values():
            model.batcher.close()

    app = FastAPIOffline(title="mmspec", version=__version__, lifespan=life, redoc_url=None, root_path=root_path)
    served = {model.task for model in serving.models.values()}
    for task in served:
        app.include_router(ROUTERS[task](serving))

    for task in ROUTERS.keys() - served:
        app.include_router(absent(task, served), include_in_schema=False)

    @app.get("/v1/models", responses=ERROR_RESPONSES, tags=["models"], summary="Models that are served")
    async def models() -> ModelList:
        return ModelList(data=[card(name, model) for name, model in serving.names.items()])

    @app.get("/v1/models/{name}", responses=ERROR_RESPONSES, tags=["models"], summary="One model")
    async def model(name: str) -> ModelCard:
        if name not in serving.names:
            raise Refusal(
                404, f"no model {name!r} is served here: there is {', '.join(serving.names)}", "model_not_found"
            )
        return card(name, serving.names[name])

    @app.get("/", include_in_schema=False)
    @app.head("/", include_in_schema=False)
    async def index(request: Request) -> RedirectResponse:
        return RedirectResponse(f"{request.scope.get('root_path', '')}/docs")

    @app.head("/health", include_in_schema=False)
    @app.get("/health", responses={503: ERROR_RESPONSES[503]}, tags=["server"], summary="Whether the server works")
    async def health() -> Health:
        stopped = [name for name, model in serving.models.items() if not model.batcher.alive]
        if stopped:
            raise Refusal(503, f"{', '.join(stopped)} has stopped: start the server again")
        return Health(models=list(serving.models))

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses={401: ERROR_RESPONSES[401]},
        tags=["server"],
        summary="For Prometheus",
    )
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(generate_latest(serving.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(MmspecError)
    async def wrong(request: Request, error: MmspecError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first: dict = error.errors()[0]
        where = [str(step) for step in first["loc"] if step != "body"]
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "json_invalid":
            where, message = [], f"it is no JSON ({first['ctx']['error']} at character {where[0]})"
        elif first["type"] in ("literal_error", "too_long"):
            expected = first["ctx"].get("expected", "an empty list")
            message = f"{message}; this server has nothing else: leave it out, or give {expected}"
        elif not where and not request.headers.get("content-type", "").startswith("application/json"):
            message = "send JSON, with Content-Type: application/json"
        return error_response(Refusal(400, f"{'.'.join(where) or 'the body'}: {message}"))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        answer = error_response(Refusal(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))
        answer.headers.update(error.headers or {})
        return answer

    app.add_middleware(AuthAndLimits, serving=serving)
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=EXPOSED
        )
    generated = app.openapi

    def openapi() -> dict:
        """FastAPI's description, with the key, and without the error bodies that are never sent."""
        schema = generated()
        for operation in (operation for path in schema["paths"].values() for operation in path.values()):
            operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        if serving.api_key:
            schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"key": []}]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app
