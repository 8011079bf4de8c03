"""`POST /v1/chat/completions`."""

import io
from collections.abc import AsyncIterator
from time import time
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from PIL import Image
from pydantic import BaseModel, Field

from mmspec.media import image as picture
from mmspec.pipelines.request import HIGHEST
from mmspec.serve.remote import fetch
from mmspec.serve.serving import EVENTS, PROBLEMS, Metrics, Refusal, Serving, Shape, event, last, started


class TextPart(Shape):
    type: Literal["text"]
    text: str


class ImageUrl(Shape):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Shape):
    """A picture as a `data:` URL; http(s) only where the server allows it."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(Shape):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], Field(max_length=32)]
    name: str | None = None


class StreamOptions(Shape):
    include_usage: bool = False


class ChatRequest(Shape):
    """A chat to be answered. `top_k` and the fields after it are mmspec's own; the temperature is the model's own if left out."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=64)]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=16)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=0, le=HIGHEST)] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    user: str | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] = 0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    drafter: str | None = None
    acceptance: str = "exact"


class Answer(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    index: int
    message: Answer
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatResponse(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    metrics: Metrics


class Cut:
    """The text of one answer up to the first of the `stops`; what may be the beginning of one is held back."""

    def __init__(self, stops: list[str]):
        self.stops, self.text, self.told, self.over = stops, "", 0, False

    def push(self, text: str, last: bool = False) -> str:
        """What may be told now that `text` has come."""
        if self.over:
            return ""
        self.text += text
        found = [at for stop in self.stops if (at := self.text.find(stop)) >= 0]
        if found:
            self.text, self.over = self.text[: min(found)], True
        held = 0
        if not (last or self.over):
            held = max(
                (n for stop in self.stops for n in range(1, len(stop)) if self.text.endswith(stop[:n])), default=0
            )
        told, self.told = self.text[self.told : len(self.text) - held], max(self.told, len(self.text) - held)
        return told


def data_of(serving: Serving, url: str) -> bytes:
    """The file of a data URL, or of an address if the server may fetch it."""
    if not url.startswith("data:"):
        if not serving.urls:
            raise Refusal(
                400, "this server fetches no addresses: give the picture as a data URL, data:image/png;base64,..."
            )
        return fetch(url, serving.limits.body, min(20.0, serving.limits.seconds))
    try:
        return picture.data_of(url)
    except ValueError:
        raise Refusal(
            400, "a picture's data URL is broken: give data:image/png;base64, and the file in base64"
        ) from None


def chat_of(serving: Serving, messages: list[Message]) -> list[dict]:
    """Messages as the pipeline takes them; their words, pictures and pixels are bounded together."""
    words, pictures, pixels = 0, 0, 0
    found: list[dict] = []
    for message in messages:
        parts = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        given: list[dict] = []
        for part in parts:
            if isinstance(part, TextPart):
                words += len(part.text)
                given.append({"type": "text", "text": part.text})
                continue
            data = data_of(serving, part.image_url.url)
            try:
                width, height = Image.open(io.BytesIO(data), formats=picture.READ).size
            except Exception:  # Pillow's readers raise anything over a broken header
                raise Refusal(
                    400, "a picture cannot be read: give a PNG, JPEG or WebP file that opens elsewhere"
                ) from None
            pictures, pixels = pictures + 1, pixels + width * height
            if pixels > serving.limits.pixels or pictures > serving.limits.pictures:
                raise Refusal(
                    400,
                    f"{pictures} pictures with {pixels} pixels are too much: at most {serving.limits.pictures} of them, with "
                    f"{serving.limits.pixels} pixels in all",
                )
            given.append({"type": "image", "image": picture.read(data)})
        found.append({"role": "system" if message.role == "developer" else message.role, "content": given})
    if words > serving.limits.text:
        raise Refusal(
            400, f"the messages have {words} characters, and {serving.limits.text} are the most: shorten them"
        )
    return found


def router(serving: Serving) -> APIRouter:
    """The endpoint over the models of `serving`."""
    routes = APIRouter(tags=["chat"])

    @routes.post(
        "/v1/chat/completions",
        response_model=ChatResponse,
        responses=PROBLEMS | EVENTS,
        summary="Answer a chat with pictures",
    )
    async def complete(body: ChatRequest, request: Request) -> Any:
        """Answer. With `stream`, server-sent events of `chat.completion.chunk` objects, and `[DONE]` at the end."""
        model = serving.model(body.model, "image-text-to-text")
        pipe, stops = model.seat(), [body.stop] if isinstance(body.stop, str) else body.stop or []
        if body.n > serving.limits.rows:
            raise Refusal(400, f"n={body.n}: this server gives at most {serving.limits.rows} answers at once")
        if "" in stops:
            raise Refusal(400, "a stop sequence is empty: leave it out")
        if body.max_tokens and body.max_completion_tokens:
            raise Refusal(400, "max_tokens and max_completion_tokens are both given: give one")
        chat = await serving.thread(lambda: chat_of(serving, body.messages))
        law = body.model_dump(
            include={"seed", "temperature", "top_k", "top_p", "repetition_penalty", "drafter", "acceptance"}
        )
        length = body.max_completion_tokens or body.max_tokens
        parts = serving.follow(
            request, pipe, lambda: pipe.stream([chat] * body.n, max_new_tokens=length, **law), body.stream
        )
        about: dict[str, Any] = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time()), "model": model.name}
        cuts = [Cut(stops) for _ in range(body.n)]

        async def answered() -> AsyncIterator[tuple[Any, list[str]]]:
            """Every round's words, up to stop sequences."""
            async for words in parts:
                yield words, [cut.push(new) for cut, new in zip(cuts, words.texts)]
                if all(cut.over for cut in cuts):
                    pipe.interrupt = True
                    break

        def ends(output: Any) -> list[Literal["stop", "length"]]:
            return [
                "stop" if cut.over or why == "end" else "length"
                for cut, why in zip(cuts, output.ended or ["end"] * body.n)
            ]

        def usage(output: Any) -> Usage:
            read = output.prompt_tokens // body.n
            return Usage(
                prompt_tokens=read, completion_tokens=output.stats.tokens, total_tokens=read + output.stats.tokens
            )

        async def events() -> AsyncIterator[str]:
            def chunk(index: int, delta: dict, why: str | None, **more: Any) -> str:
                choice = {"index": index, "delta": delta, "finish_reason": why, "logprobs": None}
                return event({"object": "chat.completion.chunk", "choices": [choice]} | about | more)

            first = True
            async for words, told in answered():  # noqa: B007
                for index, text in enumerate(told):
                    if text or first:
                        yield chunk(index, ({"role": "assistant"} if first else {}) | {"content": text}, None)
                first = False
            metrics = serving.report(model, words.output.stats).model_dump()
            for index, (cut, why) in enumerate(zip(cuts, ends(words.output))):
                rest = cut.push("", last=True)
                yield chunk(index, {"content": rest} if rest else {}, why, metrics=metrics)
            if body.stream_options and body.stream_options.include_usage:
                yield event(
                    {"object": "chat.completion.chunk", "choices": [], "usage": usage(words.output).model_dump()}
                    | about
                )
            yield "data: [DONE]\n\n"

        if body.stream:
            return StreamingResponse(await started(events()), media_type="text/event-stream")
        words, _ = await last(answered())
        for cut in cuts:
            cut.push("", last=True)
        return ChatResponse(
            **about,
            choices=[
                Choice(index=index, message=Answer(content=cut.text), finish_reason=why)
                for index, (cut, why) in enumerate(zip(cuts, ends(words.output)))
            ],
            usage=usage(words.output),
            metrics=serving.report(model, words.output.stats),
        )

    return routes
