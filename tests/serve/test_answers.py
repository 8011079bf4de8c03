"""OpenAI's own client gets what the pipelines give."""

import io
import json
import wave

import httpx
import numpy as np
import pytest
from PIL import Image
from serve_cases import PROMPT, TEXT, chat, pixels

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")

pytestmark = pytest.mark.slow


def test_images(client, pipes) -> None:
    """The pictures are those of the pipeline, pixel by pixel, and statistics come with them."""
    pipe = pipes["text-to-image"]
    wanted = pipe(PROMPT, seed=5, num_images_per_prompt=2).images
    found = client.images.generate(prompt=PROMPT, model="tiny", n=2, response_format="b64_json", extra_body={"seed": 5})
    for one, image in zip(found.data, wanted, strict=True):
        assert np.array_equal(pixels(one.b64_json), np.asarray(image))
    stats = found.metrics["speculative_decoding"]
    assert stats["tokens"] == 128 and stats["lossless"] and stats["drafter"] == "jacobi" and found.size == "16x16"


def test_images_as_they_are_drawn(client, pipes) -> None:
    """Partial pictures, then the whole one."""
    events = list(
        client.images.generate(prompt=PROMPT, stream=True, partial_images=3, extra_body={"seed": 5, "drafter": "none"})
    )
    assert [event.type.split(".")[1] for event in events] == ["partial_image"] * 3 + ["completed"]
    assert np.array_equal(pixels(events[-1].b64_json), np.asarray(pipes["text-to-image"](PROMPT, seed=5).images[0]))
    grey = [(pixels(event.b64_json) == round(255 * 0.75)).all(2).mean() for event in events]
    assert grey[0] > grey[1] > grey[2] > grey[3]


@pytest.mark.filterwarnings("ignore:sentence")
def test_speech(client, pipes) -> None:
    """WAV and PCM in chunks, FLAC in one piece: the samples of the pipeline, but for the last bit where the server's
    thread sums otherwise.
    """
    soundfile = pytest.importorskip("soundfile")
    pipe = pipes["text-to-speech"]
    wanted = np.concatenate([chunk.audio.numpy() for chunk in pipe.stream(TEXT, seed=5, voice="ben")])
    exact = (wanted.clip(-1, 1) * 32767).round().astype(np.int16)
    given = dict(model="tiny-speech", voice="ben", input=TEXT, extra_body={"seed": 5})
    with client.audio.speech.with_streaming_response.create(**given, response_format="wav") as answer:
        pieces = list(answer.iter_bytes())
    assert same(np.frombuffer(b"".join(pieces)[44:], "<i2"), exact)
    whole = client.audio.speech.create(**given, response_format="wav").read()
    assert same(np.frombuffer(whole[44:], "<i2"), exact)
    with wave.open(io.BytesIO(whole)) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (22050, 2, 1)
    samples, rate = soundfile.read(
        io.BytesIO(client.audio.speech.create(**given, response_format="flac").read()), dtype="int16"
    )
    assert (
        rate == 22050 and np.abs(samples.astype(int) - exact[: len(samples)]).max() <= 40 and len(samples) == len(exact)
    )


def same(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Equal but for rounding to 16 bits."""
    return len(found) == len(wanted) and np.abs(found.astype(int) - wanted).max() <= 1


def test_speech_events(address: str) -> None:
    """Server-sent events carry the samples, and the last one says why sentences ended and what drafting gained."""
    body = {
        "input": TEXT,
        "seed": 5,
        "stream_format": "sse",
        "response_format": "pcm",
        "tolerance": 3,
        "drafter": "vadusa",
    }
    answer = httpx.post(f"{address}/v1/audio/speech", json=body, timeout=120)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line]
    assert all(event["type"] == "speech.audio.delta" for event in events[:-1]) and len(events) > 2
    done = events[-1]
    assert done["type"] == "speech.audio.done" and len(done["ended"]) == 2
    assert not done["metrics"]["speculative_decoding"]["lossless"]


def test_chat(client, pipes) -> None:
    """Answers about a picture, several at once, and further questions."""
    pipe, picture = pipes["image-text-to-text"], Image.new("RGB", (40, 30), "red")
    wanted = pipe([[*chat_of(picture)]] * 2, seed=5, temperature=1.0)
    found = client.chat.completions.create(
        model="tiny-vision", messages=chat("what is this?", picture), n=2, seed=5, temperature=1.0, max_tokens=24
    )
    assert [choice.message.content for choice in found.choices] == wanted.texts
    assert [choice.finish_reason for choice in found.choices] == [{"end": "stop"}.get(why, why) for why in wanted.ended]
    assert (
        found.usage.completion_tokens == wanted.stats.tokens and found.usage.prompt_tokens == wanted.prompt_tokens // 2
    )
    assert found.metrics["speculative_decoding"]["tokens"] == wanted.stats.tokens
    longer = [
        *chat("what is this?", picture),
        {"role": "assistant", "content": "red."},
        {"role": "user", "content": "sure?"},
    ]
    talk = [*chat_of(picture), {"role": "assistant", "content": "red."}, {"role": "user", "content": "sure?"}]
    again = client.chat.completions.create(model="tiny-vision", messages=longer, seed=5, temperature=1.0)
    assert again.choices[0].message.content == pipe(talk, seed=5, temperature=1.0).text


def chat_of(picture: Image.Image) -> list[dict]:
    return [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "what is this?"}]}
    ]


def test_chat_streams(client, pipes) -> None:
    """Chunks join to the answer; usage comes last when asked for."""
    wanted = pipes["image-text-to-text"](None, "hello there", seed=5, temperature=1.0)
    chunks = list(
        client.chat.completions.create(
            model="tiny-vision",
            messages=chat("hello there"),
            seed=5,
            temperature=1.0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == wanted.text
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-2].choices[0].finish_reason in ("stop", "length")
    assert chunks[-1].usage.completion_tokens == wanted.stats.tokens and len(chunks) > 3
    assert chunks[-2].metrics["speculative_decoding"]["lossless"]


def test_what_changes_nothing_is_taken(address: str) -> None:
    """Fields at values that mean nothing, and null, are as if left out; the answer is described as what it is."""
    plain = {"messages": chat("hello there"), "seed": 5}
    more = {
        "n": None,
        "top_p": None,
        "stream": None,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logprobs": False,
        "stop": None,
    }
    found = [
        httpx.post(f"{address}/v1/chat/completions", json=plain | extra, timeout=60).json() for extra in ({}, more)
    ]
    assert found[0]["choices"] == found[1]["choices"] and found[0]["usage"] == found[1]["usage"]


@pytest.mark.parametrize("stream", [False, True])
def test_stop_sequences(client, pipes, stream: bool) -> None:
    """The answer ends before the first of them, wherever rounds begin."""
    whole = pipes["image-text-to-text"](None, "hello there", seed=5, temperature=1.0).text
    for stop in (whole[5:8], whole[9:10]):
        found = client.chat.completions.create(
            model="tiny-vision",
            messages=chat("hello there"),
            seed=5,
            temperature=1.0,
            stop=[stop, "nothing"],
            stream=stream,
        )
        if stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in found)
        else:
            text = found.choices[0].message.content
            assert found.choices[0].finish_reason == "stop"
        assert text == whole[: whole.index(stop)]
