"""`POST /v1/chat/completions`."""

import io
from collections.abc import AsyncIterator
from time import time
from typing import Annotated, Literal
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from PIL import Image
from pydantic import BaseModel, Field

from mmspec.media import image as media
from mmspec.pipelines.outputs import ImageTextToTextOutput, TextChunk
from mmspec.serve.bodies import SamplingFields, StrictModel
from mmspec.serve.errors import ERROR_RESPONSES, Refusal
from mmspec.serve.metrics import Metrics
from mmspec.serve.remote import fetch
from mmspec.serve.serving import EVENTS, Serving, drain, event, prime


class TextPart(StrictModel):
    type: Literal["text"]
    text: str


class ImageUrl(StrictModel):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(StrictModel):
    """A picture as a `data:` URL; http(s) only where the server allows it."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(StrictModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], Field(max_length=32)]
    name: str | None = None


class StreamOptions(StrictModel):
    include_usage: bool = False


class ChatRequest(SamplingFields):
    """A chat to be answered. The sampling fields that OpenAI lacks are mmspec's own; the temperature is the model's own
    if left out.
    """

    messages: Annotated[list[Message], Field(min_length=1, max_length=64)]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=16)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    user: str | None = None


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


class StopSequences:
    """The text of one answer up to the first of the `stops`; what may be the beginning of one is held back."""

    def __init__(self, stops: list[str]):
        self.stops, self.text, self.sent, self.over = stops, "", 0, False

    def push(self, text: str, last: bool = False) -> str:
        """What may be sent now that `text` has come."""
        if self.over:
            return ""
        self.text += text
        starts = [start for stop in self.stops if (start := self.text.find(stop)) >= 0]
        if starts:
            self.text, self.over = self.text[: min(starts)], True
        held = 0
        if not (last or self.over):
            beginnings = (n for stop in self.stops for n in range(1, len(stop)) if self.text.endswith(stop[:n]))
            held = max(beginnings, default=0)
        ready = self.text[self.sent : len(self.text) - held]
        self.sent = max(self.sent, len(self.text) - held)
        return ready


def read_url(serving: Serving, url: str) -> bytes:
    """The file of a data URL, or of an address if the server may fetch it."""
    if not url.startswith("data:"):
        if not serving.urls:
            raise Refusal(
                400, "this server fetches no addresses: give the picture as a data URL, data:image/png;base64,..."
            )
        return fetch(url, serving.limits.body, min(20.0, serving.limits.seconds))
    try:
        return media.data_of(url)
    except ValueError:
        raise Refusal(
            400, "a picture's data URL is broken: give data:image/png;base64, and the file in base64"
        ) from None


def read_chat(serving: Serving, messages: list[Message]) -> list[dict]:
    """Messages as the pipeline takes them; their characters, pictures and pixels are bounded together."""
    characters, pictures, pixels = 0, 0, 0
    chat: list[dict] = []
    for message in messages:
        content = message.content
        parts: list[dict] = []
        for part in [TextPart(type="text", text=content)] if isinstance(content, str) else content:
            if isinstance(part, TextPart):
                characters += len(part.text)
                parts.append({"type": "text", "text": part.text})
                continue
            data = read_url(serving, part.image_url.url)
            pictures, pixels = pictures + 1, pixels + _pixels(data)
            if pixels > serving.limits.pixels or pictures > serving.limits.pictures:
                raise Refusal(
                    400,
                    f"{pictures} pictures with {pixels} pixels are too much: at most {serving.limits.pictures} of "
                    "them, "
                    f"with {serving.limits.pixels} pixels in all",
                )
            parts.append({"type": "image", "image": media.read(data)})
        chat.append({"role": "system" if message.role == "developer" else message.role, "content": parts})
    if characters > serving.limits.text:
        raise Refusal(
            400, f"the messages have {characters} characters, and {serving.limits.text} are the most: shorten them"
        )
    return chat


def _pixels(data: bytes) -> int:
    """How many pixels a picture has, by its header alone."""
    try:
        width, height = Image.open(io.BytesIO(data), formats=media.READ).size
    except Exception:  # Pillow's readers raise anything over a broken header
        raise Refusal(400, "a picture cannot be read: give a PNG, JPEG or WebP file that opens elsewhere") from None
    return width * height


def router(serving: Serving) -> APIRouter:
    """The endpoint over the models of `serving`."""
    routes = APIRouter(tags=["chat"])

    @routes.post(
        "/v1/chat/completions",
        response_model=ChatResponse,
        responses=ERROR_RESPONSES | EVENTS,
        summary="Answer a chat with pictures",
    )
    async def complete(body: ChatRequest, request: Request) -> ChatResponse | StreamingResponse:
        """Answer. With `stream`, server-sent events of `chat.completion.chunk` objects, and `[DONE]` at the end."""
        model = serving.model(body.model, "image-text-to-text")
        session, stops = model.session(), [body.stop] if isinstance(body.stop, str) else body.stop or []
        if body.n > serving.limits.rows:
            raise Refusal(400, f"n={body.n}: this server gives at most {serving.limits.rows} answers at once")
        if "" in stops:
            raise Refusal(400, "a stop sequence is empty: leave it out")
        if body.max_tokens and body.max_completion_tokens:
            raise Refusal(400, "max_tokens and max_completion_tokens are both given: give one")
        chat = await serving.thread(lambda: read_chat(serving, body.messages))
        length = body.max_completion_tokens or body.max_tokens
        options = body.sampling_kwargs | {"max_new_tokens": length}
        parts = serving.iterate_in_thread(
            request, session, lambda: session.stream([chat] * body.n, **options), body.stream
        )
        name, created = f"chatcmpl-{uuid4().hex}", int(time())
        facts = {"id": name, "created": created, "model": model.name}
        answers = [StopSequences(stops) for _ in range(body.n)]

        async def chunks() -> AsyncIterator[tuple[TextChunk, list[str]]]:
            """Every round's text, up to stop sequences."""
            async for part in parts:
                yield part, [answer.push(text) for answer, text in zip(answers, part.texts)]
                if all(answer.over for answer in answers):
                    session.interrupt = True
                    break

        def finish_reasons(output: ImageTextToTextOutput) -> list[Literal["stop", "length"]]:
            ended = output.ended or ["end"] * body.n
            return ["stop" if answer.over or why == "end" else "length" for answer, why in zip(answers, ended)]

        def usage(output: ImageTextToTextOutput) -> Usage:
            prompt, completion = output.prompt_tokens // body.n, output.stats.tokens
            return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)

        async def events() -> AsyncIterator[str]:
            def chunk_event(index: int, delta: dict, reason: str | None, **more: dict) -> str:
                choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
                return event({"object": "chat.completion.chunk", "choices": [choice]} | facts | more)

            first = True
            async for part, texts in chunks():  # noqa: B007
                for index, text in enumerate(texts):
                    if text or first:
                        yield chunk_event(index, ({"role": "assistant"} if first else {}) | {"content": text}, None)
                first = False
            output = part.output
            metrics = serving.metrics.count(model, output.stats).model_dump()
            for index, (answer, reason) in enumerate(zip(answers, finish_reasons(output))):
                rest = answer.push("", last=True)
                yield chunk_event(index, {"content": rest} if rest else {}, reason, metrics=metrics)
            if body.stream_options and body.stream_options.include_usage:
                last = {"object": "chat.completion.chunk", "choices": [], "usage": usage(output).model_dump()}
                yield event(last | facts)
            yield "data: [DONE]\n\n"

        if body.stream:
            return StreamingResponse(await prime(events()), media_type="text/event-stream")
        part, _ = await drain(chunks())
        for answer in answers:
            answer.push("", last=True)
        reasons = finish_reasons(part.output)
        return ChatResponse(
            id=name,
            created=created,
            model=model.name,
            choices=[
                Choice(index=index, message=Answer(content=answer.text), finish_reason=reason)
                for index, (answer, reason) in enumerate(zip(answers, reasons))
            ],
            usage=usage(part.output),
            metrics=serving.metrics.count(model, part.output.stats),
        )

    return routes
