"""`POST /v1/chat/completions`."""

import io
from collections.abc import AsyncIterator, Callable
from time import time
from typing import Annotated, Literal
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from PIL import Image
from pydantic import BaseModel, BeforeValidator, Field, model_validator

from mmspec.media import image as media
from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline
from mmspec.pipelines.outputs import ImageTextToTextOutput, TextChunk
from mmspec.serve.bodies import SamplingFields, StrictModel, UserFields
from mmspec.serve.errors import ERROR_RESPONSES, Refusal
from mmspec.serve.metrics import Metrics
from mmspec.serve.remote import fetch
from mmspec.serve.serving import EVENTS, PROMPT_CHARACTERS, Serving, drain, event, event_stream

# The most stop sequences of a request, as in OpenAI's API.
STOP_SEQUENCES = 4


class TextPart(StrictModel):
    type: Literal["text"]
    text: str


class ImageUrl(StrictModel):
    url: str
    detail: Literal["auto", "low", "high", "original"] = "auto"


class ImagePart(StrictModel):
    """A picture as a `data:` URL; http(s) only where the server allows it."""

    type: Literal["image_url"]
    image_url: ImageUrl


def _parts(content: object) -> object:
    """A text as a list of one part."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _stops(stop: object) -> object:
    """A stop sequence as a list of one."""
    return [stop] if isinstance(stop, str) else stop


class Message(StrictModel):
    """What somebody said: a text, or a list of parts."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[Annotated[TextPart | ImagePart, Field(discriminator="type")]],
        BeforeValidator(_parts, json_schema_input_type=str | list[TextPart | ImagePart]),
        Field(max_length=128),
    ]
    name: str | None = None
    tool_calls: Annotated[list, Field(max_length=0)] | None = None
    annotations: Annotated[list, Field(max_length=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_null(cls, data: object) -> object:
        if isinstance(data, dict) and "content" in data and data["content"] is None:
            raise ValueError("content is null: give a text, or leave the message out")
        return data


class StreamOptions(StrictModel):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class TextFormat(StrictModel):
    type: Literal["text"]


class ChatRequest(SamplingFields, UserFields):
    """A chat to be answered. The sampling fields that OpenAI lacks are mmspec's own; the temperature is the model's own
    if left out. What this server has not is taken at the value that asks for nothing.
    """

    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=16)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    stop: (
        Annotated[
            list[str], BeforeValidator(_stops, json_schema_input_type=str | list[str]), Field(max_length=STOP_SEQUENCES)
        ]
        | None
    ) = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    logit_bias: dict[str, Literal[0]] | None = None
    tools: Annotated[list, Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list, Field(max_length=0)] | None = None
    function_call: Literal["none", "auto"] | None = None
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None


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
    """One answer up to the first of the `stops`; what may be the beginning of one is held back.

    With stops, an answer is read token by token, so that its end and the number of its tokens (`count`, up to the one
    that completes a stop sequence) are those of plain decoding, however many tokens a round brings. `decode` gives the
    text of tokens.
    """

    def __init__(self, stops: list[str], decode: Callable[[list[int]], str]):
        self.stops, self.decode = stops, decode
        self.text, self.sent, self.over, self.tokens = "", 0, False, list[int]()

    @property
    def count(self) -> int:
        """Tokens of the answer."""
        return len(self.tokens)

    def push(self, tokens: list[int], text: str) -> str:
        """What may be sent now that a round has brought `tokens`, and `text` with them."""
        if self.over:
            return ""
        if not self.stops:
            self.tokens += tokens
            self.text += text
            return self._send(len(self.text))
        for token in tokens:
            self.tokens.append(token)
            self.text = self.decode(self.tokens)
            starts = [start for stop in self.stops if (start := self.text.find(stop)) >= 0]
            if starts:
                self.text, self.over = self.text[: min(starts)], True
                return self._send(len(self.text))
        return self._send(min(map(self._begun, self.stops)))

    def _begun(self, stop: str) -> int:
        """Where the text's end begins that is a beginning of `stop`; the text's length if none is."""
        start = self.text.find(stop[0], max(0, len(self.text) - len(stop) + 1))
        while start >= 0 and not stop.startswith(self.text[start:]):
            start = self.text.find(stop[0], start + 1)
        return start if start >= 0 else len(self.text)

    def finish(self) -> str:
        """What was held back, when no more tokens come."""
        return self._send(len(self.text))

    def _send(self, until: int) -> str:
        ready = self.text[self.sent : until]
        self.sent = max(self.sent, until)
        return ready


def read_url(serving: Serving, url: str) -> bytes:
    """The file of a data URL, or of an address if the server may fetch it."""
    if url[:5].lower() != "data:":
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
        parts: list[dict] = []
        for part in message.content:
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
    most = serving.limits.text or PROMPT_CHARACTERS
    if characters > most:
        raise Refusal(400, f"the messages have {characters} characters, and {most} are the most: shorten them")
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
        model = serving.model(body.model, "image-text-to-text", request)
        session, stops = model.session(), body.stop or []
        pipe: ImageTextToTextPipeline = session.pipe
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
        answers = [
            StopSequences(stops, lambda tokens: pipe.text_of(tokens, tokens[-1] in pipe.ends)) for _ in range(body.n)
        ]

        async def chunks() -> AsyncIterator[tuple[TextChunk, list[str]]]:
            """Every round's text, up to stop sequences."""
            async for part in parts:
                yield (
                    part,
                    [answer.push(tokens, text) for answer, tokens, text in zip(answers, part.tokens, part.texts)],
                )
                if all(answer.over for answer in answers):
                    session.interrupt = True
                    break

        def finish_reasons(output: ImageTextToTextOutput) -> list[Literal["stop", "length"]]:
            ended = output.ended or ["end"] * body.n
            return ["stop" if answer.over or why == "end" else "length" for answer, why in zip(answers, ended)]

        def usage(output: ImageTextToTextOutput) -> Usage:
            prompt, completion = output.prompt_tokens // body.n, sum(answer.count for answer in answers)
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
                rest = answer.finish()
                yield chunk_event(index, {"content": rest} if rest else {}, reason, metrics=metrics)
            if body.stream_options and body.stream_options.include_usage:
                last = {"object": "chat.completion.chunk", "choices": [], "usage": usage(output).model_dump()}
                yield event(last | facts)
            yield "data: [DONE]\n\n"

        if body.stream:
            return await event_stream(events())
        part, _ = await drain(chunks())
        for answer in answers:
            answer.finish()
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
