"""`POST /v1/audio/speech`."""

import base64
import io
import json
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import Field
from torch import Tensor

from mmspec.media import audio as media
from mmspec.pipelines.outputs import TextToSpeechOutput
from mmspec.pipelines.text_to_speech import TextToSpeechPipeline
from mmspec.serve.bodies import SamplingFields, StrictModel, UserFields
from mmspec.serve.errors import ERROR_RESPONSES, Refusal
from mmspec.serve.metrics import Metrics
from mmspec.serve.serving import SPEECH_CHARACTERS, Serving, drain, event, prime, told_errors

# OpenAI's `pcm` has this rate whatever the model's is; players do not ask.
PCM_RATE = 24_000

MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg;codecs=opus",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "ogg": "audio/ogg",
    "pcm": f"audio/pcm;rate={PCM_RATE};channels=1",
}

# The most characters of the header that says what was left out; the last event of a stream says all of it.
UNSAID_HEADER = 2000


class VoiceId(StrictModel):
    """A voice, as newer clients may name it."""

    id: str


class SpeechRequest(SamplingFields, UserFields):
    """What to say. The sampling fields and `tolerance` are mmspec's own; `tolerance` above 1 is lossy.

    `response_format` is mp3 if left out, as in OpenAI's API, and pcm for events.
    """

    input: str
    model: str | None = None
    voice: str | VoiceId | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm", "ogg"] | None = None
    stream_format: Literal["audio", "sse"] | None = None
    speed: Literal[1.0] = 1.0
    instructions: Literal[""] | None = None
    tolerance: Annotated[int, Field(ge=1, le=64)] = 1

    @property
    def kind(self) -> str:
        """The format of the sound."""
        return self.response_format or ("pcm" if self.stream_format == "sse" else "mp3")


class ChunkEncoder:
    """Sound in chunks as bytes: 16-bit samples at `PCM_RATE`, or a WAV without an end at the model's rate."""

    def __init__(self, kind: str, rate: int):
        self.rate = PCM_RATE if kind == "pcm" else rate
        self.resampler = media.Resampler(rate, self.rate)
        self.buffer = io.BytesIO()
        self.writer = media.Pipe(self.buffer, self.rate, header=kind != "pcm")

    def __call__(self, audio: Tensor | None) -> bytes:
        """The bytes of a chunk, of what is left if None."""
        self.writer.write(self.resampler.flush() if audio is None else self.resampler.push(audio))
        data = self.buffer.getvalue()
        self.buffer.seek(0)
        self.buffer.truncate()
        return data


def unsaid_header(unsaid: list[str]) -> dict[str, str]:
    """A header with what is left out of speech as JSON in ASCII, if there is anything; a long list is cut."""
    told = list(unsaid)
    while len(json.dumps(told)) > UNSAID_HEADER:
        told = [*told[: (len(told) - 1) // 2], "..."]
    return {"x-mmspec-unsaid": json.dumps(told)} if told else {}


def router(serving: Serving) -> APIRouter:
    """The endpoint over the models of `serving`."""
    routes = APIRouter(tags=["speech"])
    content: dict[str, dict] = {kind: {} for kind in (*MEDIA_TYPES.values(), "text/event-stream")}
    sound: dict[int | str, dict] = {200: {"description": "Sound, or server-sent events", "content": content}}

    @routes.post("/v1/audio/speech", response_class=Response, responses=ERROR_RESPONSES | sound, summary="Speak a text")
    async def speak(body: SpeechRequest, request: Request) -> Response:
        """Speak.

        MP3, Opus, AAC, FLAC and Ogg come when all is said, and so does WAV, with its true length, unless it is asked to
        stream: with `stream_format` "audio", or by `with_streaming_response` of OpenAI's client. PCM (16 bits, mono,
        24 kHz) comes in chunks as they are verified. With `stream_format` "sse", `speech.audio.delta` events bring
        base64 PCM (or a WAV in pieces), and a last `speech.audio.done` statistics and what was left out.
        """
        model = serving.model(body.model, "text-to-speech", request)
        session, text = model.session(), serving.check_text("input", body.input, SPEECH_CHARACTERS)
        pipe: TextToSpeechPipeline = session.pipe
        voice = body.voice.id if isinstance(body.voice, VoiceId) else body.voice
        if voice is not None and not pipe.takes_voice(voice):
            raise Refusal(400, f"voice={voice}: {model.name} has {', '.join(pipe.voices)}")
        options = body.sampling_kwargs | {"voice": voice}
        if body.tolerance > 1:
            if body.acceptance != "exact":
                raise Refusal(400, "tolerance and acceptance are both given: give one")
            options["acceptance"] = f"tolerance:{body.tolerance}"
        kind, rate = body.kind, pipe.codec.sampling_rate
        if body.stream_format == "sse" and kind not in ("pcm", "wav"):
            raise Refusal(400, f"response_format={kind} does not stream: ask for pcm or wav")
        if kind == "aac":
            media.library("av", "aac")
        asked = body.stream_format is not None or request.headers.get("x-stainless-raw-response") == "stream"
        streams = kind == "pcm" or (kind == "wav" and asked)
        parts = serving.iterate_in_thread(request, session, lambda: session.stream(text, **options), streams)

        async def chunks() -> AsyncIterator[tuple[bytes, TextToSpeechOutput]]:
            encode = ChunkEncoder(kind, rate)
            async for chunk in parts:
                yield encode(chunk.audio), chunk.output
            if rest := encode(None):
                yield rest, chunk.output
            finished.append(serving.metrics.count(model, chunk.output.stats))

        async def events(chunks: AsyncIterator[tuple[bytes, TextToSpeechOutput]]) -> AsyncIterator[str]:
            async for data, output in chunks:  # noqa: B007
                audio = base64.b64encode(data).decode()
                yield event(
                    {
                        "type": "speech.audio.delta",
                        "audio": audio,
                        "format": kind,
                        "sampling_rate": PCM_RATE if kind == "pcm" else rate,
                    }
                )
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
                    "unsaid": output.unsaid,
                    "sampling_rate": PCM_RATE if kind == "pcm" else rate,
                    "metrics": finished[0].model_dump(),
                }
            )

        finished: list[Metrics] = []
        if streams:
            first, rest = await prime(chunks())
            headers = unsaid_header(first[1].unsaid)
            if body.stream_format == "sse":
                return StreamingResponse(told_errors(events(rest)), media_type="text/event-stream", headers=headers)
            return StreamingResponse((data async for data, _ in rest), media_type=MEDIA_TYPES[kind], headers=headers)
        output = (await drain(parts)).output
        headers = unsaid_header(output.unsaid)
        serving.metrics.count(model, output.stats)
        # Nothing of how long it took, nor of how many tokens a round gave, which depends on it: the same seed gives the
        # same file.
        facts = {"text": text, "seed": output.seeds[0], "ended": output.ended} | output.stats.facts
        del facts["mean_acceptance_length"]
        if kind == "wav":
            buffer = io.BytesIO()
            media.Pipe(buffer, rate, samples=len(output.audio)).write(output.audio)
            return Response(buffer.getvalue(), media_type=MEDIA_TYPES[kind], headers=headers)
        data = await serving.thread(lambda: media.encode(output.audio, rate, kind.upper(), facts))
        return Response(data, media_type=MEDIA_TYPES[kind], headers=headers)

    return routes
