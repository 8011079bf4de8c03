"""`POST /v1/audio/speech`."""

import base64
import io
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import Field

from mmspec.media import audio as media
from mmspec.pipelines.text_to_speech import TextToSpeechPipeline
from mmspec.serve.bodies import SamplingFields
from mmspec.serve.errors import ERROR_RESPONSES, Refusal
from mmspec.serve.serving import Serving, drain, event, prime

MEDIA_TYPES = {"wav": "audio/wav", "pcm": "audio/pcm", "flac": "audio/flac", "ogg": "audio/ogg"}


class SpeechRequest(SamplingFields):
    """What to say. The sampling fields and `tolerance` are mmspec's own; `tolerance` above 1 is lossy."""

    input: str
    model: str | None = None
    voice: str | None = None
    response_format: Literal["wav", "pcm", "flac", "ogg"] = "wav"
    stream_format: Literal["audio", "sse"] = "audio"
    speed: Literal[1.0] = 1.0
    tolerance: Annotated[int, Field(ge=1, le=64)] = 1


def router(serving: Serving) -> APIRouter:
    """The endpoint over the models of `serving`."""
    routes = APIRouter(tags=["speech"])
    content: dict[str, dict] = {kind: {} for kind in (*MEDIA_TYPES.values(), "text/event-stream")}
    sound: dict[int | str, dict] = {200: {"description": "Sound, or server-sent events", "content": content}}

    @routes.post("/v1/audio/speech", response_class=Response, responses=ERROR_RESPONSES | sound, summary="Speak a text")
    async def speak(body: SpeechRequest, request: Request) -> Response:
        """Speak. WAV and PCM (16 bits, mono) come in chunks as they are verified; FLAC and Ogg when all is said.

        With `stream_format` "sse", `speech.audio.delta` events with base64 PCM and a last `speech.audio.done` with
        statistics.
        """
        model = serving.model(body.model, "text-to-speech")
        session, text = model.session(), serving.check_text("input", body.input)
        pipe: TextToSpeechPipeline = session.pipe
        if body.voice is not None and body.voice not in pipe.voices:
            raise Refusal(400, f"voice={body.voice}: {model.name} has {', '.join(pipe.voices)}")
        options = body.sampling_kwargs | {"voice": body.voice}
        if body.tolerance > 1:
            if body.acceptance != "exact":
                raise Refusal(400, "tolerance and acceptance are both given: give one")
            options["acceptance"] = f"tolerance:{body.tolerance}"
        whole = body.response_format in ("flac", "ogg")
        if whole and body.stream_format == "sse":
            raise Refusal(400, f"response_format={body.response_format} does not stream: ask for pcm or wav")
        parts = serving.iterate_in_thread(request, session, lambda: session.stream(text, **options), not whole)
        rate = pipe.codec.sampling_rate

        async def chunks() -> AsyncIterator[bytes]:
            buffer = io.BytesIO()
            writer = media.Pipe(buffer, rate, header=body.response_format != "pcm")
            async for chunk in parts:
                writer.write(chunk.audio)
                yield buffer.getvalue()
                buffer.seek(0)
                buffer.truncate()
            serving.metrics.count(model, chunk.output.stats)

        async def events() -> AsyncIterator[str]:
            async for chunk in parts:
                samples = media.pcm(chunk.audio).numpy().astype("<i2").tobytes()
                yield event({"type": "speech.audio.delta", "audio": base64.b64encode(samples).decode()})
            output = chunk.output
            stats, phonemes = output.stats, sum(len(sentence.phonemes) for sentence in output.sentences)
            yield event(
                {
                    "type": "speech.audio.done",
                    "usage": {
                        "input_tokens": phonemes,
                        "output_tokens": stats.tokens,
                        "total_tokens": phonemes + stats.tokens,
                    },
                    "ended": output.ended,
                    "seeds": output.seeds,
                    "sampling_rate": rate,
                    "metrics": serving.metrics.count(model, stats).model_dump(),
                }
            )

        if body.stream_format == "sse":
            return StreamingResponse(await prime(events()), media_type="text/event-stream")
        if not whole:
            return StreamingResponse(await prime(chunks()), media_type=MEDIA_TYPES[body.response_format])
        output = (await drain(parts)).output
        facts: dict[str, object] = {"text": text, "metrics": serving.metrics.count(model, output.stats).model_dump()}
        kind = body.response_format.upper()
        data = await serving.thread(lambda: media.encode(output.audio, rate, kind, facts))
        return Response(data, media_type=MEDIA_TYPES[body.response_format])

    return routes
