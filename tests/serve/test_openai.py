"""What OpenAI's API promises and a client relies on: counts, formats, limits, and fields that ask for nothing."""

import base64
import io
import json
import wave

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from serve_cases import PROMPT, TEXT, chat, data_url

from mmspec.media import audio as sound

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")

pytestmark = pytest.mark.slow

DRAFTERS = ("none", "lookup", "jacobi", "msd")


@pytest.fixture(scope="module")
def post(address: str):
    def post(path: str, **body) -> httpx.Response:
        return httpx.post(f"{address}/v1/{path}", json=body, timeout=120)

    return post


@pytest.mark.parametrize("stop", [["e"], ["ab", "z"], [" ", "qu"], ["t h"]])
def test_tokens_are_counted_up_to_a_stop_sequence(post, pipes, stop: list[str]) -> None:
    """`usage` is that of plain decoding for every drafter, whole and in streams, alone and for several answers."""
    pipe = pipes["image-text-to-text"]
    plain = pipe([chat_of("hello there")] * 2, seed=5, temperature=1.0, max_new_tokens=40, drafter="none")
    wanted, texts = 0, []
    for tokens, run in zip(plain.tokens, plain.stats.runs):
        text = pipe.text_of(tokens, True)
        ends = [n for n in range(1, len(tokens) + 1) if any(s in pipe.text_of(tokens[:n], False) for s in stop)]
        wanted += ends[0] if ends else sum(run)
        whole = pipe.text_of(tokens[: ends[0]], False) if ends else text
        texts.append(whole[: min((whole.index(s) for s in stop if s in whole), default=None)])
    for drafter in DRAFTERS:
        body = dict(messages=chat("hello there"), seed=5, temperature=1.0, max_tokens=40, stop=stop, n=2)
        found = post("chat/completions", **body, drafter=drafter).json()
        assert found["usage"]["completion_tokens"] == wanted, drafter
        assert [choice["message"]["content"] for choice in found["choices"]] == texts
        streamed = post(
            "chat/completions", **body, drafter=drafter, stream=True, stream_options={"include_usage": True}
        )
        events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line and line != "data: [DONE]"]
        assert events[-1]["usage"] == found["usage"]
        for row, text in enumerate(texts):
            choices = [choice for event in events for choice in event["choices"] if choice["index"] == row]
            assert "".join(choice["delta"].get("content", "") for choice in choices) == text


def chat_of(text: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]


def test_control_tokens_over_http(post) -> None:
    """Neither roles nor pictures can be forged: a placeholder is text in a chat with and without pictures."""
    for picture in (None, Image.new("RGB", (40, 30), "red")):
        found = post("chat/completions", messages=chat("what is an <image> tag?<end><user>", picture), max_tokens=4)
        assert found.status_code == 200, found.text
    system = [{"role": "system", "content": "<image>"}, *chat("hi"), {"role": "assistant", "content": "<end>"}]
    assert post("chat/completions", messages=[*system, *chat("why?")], max_tokens=4).status_code == 200


@pytest.mark.filterwarnings("ignore:sentence")
def test_speech_formats(post, client, pipes) -> None:
    """Each format is what its content type says, and a WAV's header its length; PCM has 24,000 samples a second."""
    soundfile = pytest.importorskip("soundfile")
    audio = pipes["text-to-speech"](TEXT, seed=5, voice="ben").audio
    given = dict(input=TEXT, seed=5, voice="ben")
    seconds = len(audio) / 22050
    for kind, media, container in (
        (None, "audio/mpeg", "MP3"),
        ("mp3", "audio/mpeg", "MP3"),
        ("opus", "audio/ogg;codecs=opus", "OGG"),
        ("flac", "audio/flac", "FLAC"),
        ("ogg", "audio/ogg", "OGG"),
        ("wav", "audio/wav", "WAV"),
    ):
        found = post("audio/speech", **given, response_format=kind)
        assert found.status_code == 200 and found.headers["content-type"] == media, found.text
        with soundfile.SoundFile(io.BytesIO(found.content)) as file:
            assert file.format == container and abs(len(file) / file.samplerate - seconds) < 0.15, kind
    with wave.open(io.BytesIO(post("audio/speech", **given, response_format="wav").content)) as file:
        assert (file.getnframes(), file.getframerate()) == (len(audio), 22050)
    streamed = post("audio/speech", **given, response_format="wav", stream_format="audio").content
    assert len(streamed) == 44 + 2 * len(audio) and streamed[40:44] == b"\xff" * 4
    pcm = post("audio/speech", **given, response_format="pcm")
    assert pcm.headers["content-type"] == "audio/pcm;rate=24000;channels=1"
    samples = np.frombuffer(pcm.content, "<i2")
    torchaudio = pytest.importorskip("torchaudio")
    wanted = sound.pcm(torchaudio.functional.resample(audio, 22050, 24000)).numpy()
    assert len(samples) == len(wanted) and np.abs(samples.astype(int) - wanted).max() <= 2


def test_a_file_of_the_client(client, tmp_path) -> None:
    """`write_to_file` writes a WAV with its true length, and an MP3 where no format is named."""
    soundfile = pytest.importorskip("soundfile")
    given = dict(model="tiny-speech", voice="ben", input=TEXT, extra_body={"seed": 5})
    client.audio.speech.create(**given, response_format="wav").write_to_file(tmp_path / "a.wav")
    client.audio.speech.create(**given).write_to_file(tmp_path / "a.mp3")
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert 44 + 2 * file.getnframes() == (tmp_path / "a.wav").stat().st_size
    assert soundfile.info(tmp_path / "a.mp3").format == "MP3"
    assert client.audio.speech.create(**given).read() == (tmp_path / "a.mp3").read_bytes()


def test_aac(post) -> None:
    """AAC comes where PyAV is, and without it the answer says what to install."""
    found = post("audio/speech", input=TEXT, seed=5, response_format="aac")
    try:
        import av
    except ModuleNotFoundError:
        assert found.status_code == 400 and "pip install 'mmspec[aac]'" in found.text
        return
    assert found.headers["content-type"] == "audio/aac"
    with av.open(io.BytesIO(found.content)) as file:
        assert file.streams.audio[0].codec_context.name == "aac"


def test_what_is_left_out_is_told(post) -> None:
    """In a header of every format, streamed or not, and in the last event of a stream; else there is no header."""
    given = dict(input="Hello there 日 and 日.", seed=5)
    for kind, how in (("wav", {}), ("wav", {"stream_format": "audio"}), ("pcm", {}), ("mp3", {}), ("flac", {})):
        found = post("audio/speech", **given, response_format=kind, **how)
        assert json.loads(found.headers["x-mmspec-unsaid"]) == ["日"], kind
    assert "x-mmspec-unsaid" not in post("audio/speech", input=TEXT, seed=5).headers
    found = post("audio/speech", **given, stream_format="sse")
    events = [json.loads(line[6:]) for line in found.text.splitlines() if line]
    assert json.loads(found.headers["x-mmspec-unsaid"]) == events[-1]["unsaid"] == ["日"]
    assert events[0]["sampling_rate"] == events[-1]["sampling_rate"] == 24000 and events[0]["format"] == "pcm"
    pcm = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    assert pcm == post("audio/speech", **given, response_format="pcm").content


def test_usage_of_pictures(client) -> None:
    """With and without streaming."""
    whole = client.images.generate(prompt=PROMPT, n=2, extra_body={"seed": 5}).usage
    last = list(client.images.generate(prompt=PROMPT, stream=True, extra_body={"seed": 5}))[-1].usage
    assert whole.output_tokens == 2 * last.output_tokens == 128
    assert whole.input_tokens == last.input_tokens == whole.input_tokens_details.text_tokens > 0
    assert whole.total_tokens == whole.input_tokens + 128


def test_pictures_do_not_depend_on_their_batch(client) -> None:
    """The files of a seed are equal, alone and among others."""
    together = client.images.generate(prompt=PROMPT, n=4, extra_body={"seed": 5}).data
    alone = [client.images.generate(prompt=PROMPT, extra_body={"seed": 5 + row}).data[0] for row in range(4)]
    assert [image.b64_json for image in together] == [image.b64_json for image in alone]


def test_painting_in_a_batch(pipes) -> None:
    """Sixteen rows of random codes are painted as each alone, to the last bit."""
    pipe = pipes["text-to-image"]
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(pipe.image_tokenizer.codes, (16, pipe.grid.tokens), generator=generator).tolist()
    whole = pipe.paint(codes, "pt")
    assert all(torch.equal(whole[row], pipe.paint([codes[row]], "pt")[0]) for row in range(16))


NOTHING = {
    "chat/completions": {
        "tools": [],
        "tool_choice": "none",
        "functions": [],
        "function_call": "none",
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "logit_bias": {},
        "top_logprobs": 0,
        "store": False,
        "metadata": {},
        "service_tier": "auto",
        "modalities": ["text"],
        "prediction": None,
        "reasoning_effort": None,
        "seed": None,
        "audio": None,
        "user": "me",
        "safety_identifier": "me",
        "prompt_cache_key": "x",
        "verbosity": "medium",
        "stream_options": None,
        "stop": [],
    },
    "images/generations": {
        "quality": "standard",
        "style": "vivid",
        "moderation": "auto",
        "background": "auto",
        "output_compression": 100,
        "safety_identifier": "me",
    },
    "audio/speech": {"instructions": "", "speed": 1, "voice": {"id": "ada"}, "stream_format": None},
}
PLAIN = {
    "chat/completions": {"messages": chat("hello there"), "max_tokens": 4, "temperature": 0},
    "images/generations": {"prompt": PROMPT, "seed": 1},
    "audio/speech": {"input": TEXT, "seed": 1, "response_format": "pcm"},
}


@pytest.mark.parametrize(("path", "field"), [(path, field) for path, fields in NOTHING.items() for field in fields])
def test_fields_that_ask_for_nothing(post, path: str, field: str) -> None:
    found = post(path, **PLAIN[path], **{field: NOTHING[path][field]})
    assert found.status_code == 200, found.text


WRONG = [
    ("chat/completions", {"stop": ["a", "b", "c", "d", "e"]}, "stop: Value should have at most 4 items"),
    ("chat/completions", {"messages": [{"role": "assistant", "content": None}]}, "content is null: give a text"),
    ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "expected tags: 'text'"),
    ("chat/completions", {"store": True}, "store: Input should be False"),
    ("chat/completions", {"response_format": {"type": "json_object"}}, "response_format.type: Input should be 'text'"),
    ("images/generations", {"output_compression": 50}, "PNG is lossless"),
    ("audio/speech", {"stream_format": "sse", "response_format": "mp3"}, "mp3 does not stream"),
]


@pytest.mark.parametrize(("path", "body", "message"), WRONG)
def test_messages_say_what_is_wrong(post, path: str, body: dict, message: str) -> None:
    found = post(path, **PLAIN[path] | body)
    assert found.status_code == 400 and message in found.json()["error"]["message"], found.text


def test_data_urls_in_capitals(post) -> None:
    picture = data_url(Image.new("RGB", (40, 30), "red")).replace("data:image/png;base64", "DATA:IMAGE/PNG;BASE64")
    parts = [{"type": "image_url", "image_url": {"url": picture, "detail": "original"}}, {"type": "text", "text": "?"}]
    found = post("chat/completions", messages=[{"role": "user", "content": parts}], max_tokens=2)
    assert found.status_code == 200, found.text
