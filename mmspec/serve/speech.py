"""`POST /v1/audio/speech`."""

import base64
import io
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import Field

from mmspec.media import audio as sound
from mmspec.pipelines.request import HIGHEST
from mmspec.serve.serving import PROBLEMS, Refusal, Serving, Shape, event, last, started

KINDS = {"wav": "audio/wav", "pcm": "audio/pcm", "flac": "audio/flac", "ogg": "audio/ogg"}


class SpeechRequest(Shape):
    """What to say. `seed` and the fields after it are mmspec's own; `tolerance` above 1 is lossy."""

    input: str
    model: str | None = None
    voice: str | None = None
    response_format: Literal["wav", "pcm", "flac", "ogg"] = "wav"
    stream_format: Literal["audio", "sse"] = "audio"
    speed: Literal[1.0] = 1.0
    seed: Annotated[int, Field(ge=0, le=HIGHEST)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    drafter: str | None = None
    tolerance: Annotated[int, Field(ge=1, le=64)] = 1


def router(serving: Serving) -> APIRouter:
    """The endpoint over the models of `serving`."""
    routes = APIRouter(tags=["speech"])
    audio: dict[int | str, Any] = {
        200: {
            "description": "Sound, or server-sent events",
            "content": {kind: {} for kind in (*KINDS.values(), "text/event-stream")},
        }
    }

    @routes.post("/v1/audio/speech", response_class=Response, responses=PROBLEMS | audio, summary="Speak a text")
    async def speak(body: SpeechRequest, request: Request) -> Any:
        """Speak. WAV and PCM (16 bits, mono) come in chunks as they are verified; FLAC and Ogg when all is said. With `stream_format` "sse",
        `speech.audio.delta` events with base64 PCM and a last `speech.audio.done` with statistics."""
        model = serving.model(body.model, "text-to-speech")
        pipe, text = model.seat(), serving.text("input", body.input)
        if body.voice is not None and body.voice not in pipe.voices:
            raise Refusal(400, f"voice={body.voice}: {model.name} has {', '.join(pipe.voices)}")
        law = body.model_dump(
            include={"voice", "seed", "temperature", "top_k", "top_p", "repetition_penalty", "drafter"}
        )
        law["acceptance"] = f"tolerance:{body.tolerance}" if body.tolerance > 1 else "exact"
        whole = body.response_format in ("flac", "ogg")
        if whole and body.stream_format == "sse":
            raise Refusal(400, f"response_format={body.response_format} does not stream: ask for pcm or wav")
        parts = serving.follow(request, pipe, lambda: pipe.stream(text, **law), not whole)
        rate = pipe.codec.sampling_rate

        async def chunks() -> AsyncIterator[bytes]:
            buffer = io.BytesIO()
            out = sound.Pipe(buffer, rate)
            if body.response_format == "pcm":
                out.header = b""
            async for chunk in parts:
                out.write(chunk.audio)
                yield buffer.getvalue()
                buffer.seek(0)
                buffer.truncate()
            serving.report(model, chunk.output.total)

        async def events() -> AsyncIterator[str]:
            async for chunk in parts:
                samples = sound.pcm(chunk.audio).numpy().astype("<i2").tobytes()
                yield event({"type": "speech.audio.delta", "audio": base64.b64encode(samples).decode()})
            stats = chunk.output.total
            read = sum(len(one.phonemes) for one in chunk.output.sentences)
            usage = {"input_tokens": read, "output_tokens": stats.tokens, "total_tokens": read + stats.tokens}
            facts = {"usage": usage, "ended": chunk.output.ended, "seeds": chunk.output.seeds, "sampling_rate": rate}
            yield event({"type": "speech.audio.done"} | facts | {"metrics": serving.report(model, stats).model_dump()})

        if body.stream_format == "sse":
            return StreamingResponse(await started(events()), media_type="text/event-stream")
        if not whole:
            return StreamingResponse(await started(chunks()), media_type=KINDS[body.response_format])
        done = (await last(parts)).output
        metrics = serving.report(model, done.total)
        data = await serving.thread(
            lambda: sound.encode(
                done.audio, rate, body.response_format.upper(), {"text": text, "metrics": metrics.model_dump()}
            )
        )
        return Response(data, media_type=KINDS[body.response_format])

    return routes
