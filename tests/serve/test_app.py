"""The server: OpenAI's own client gets what the pipelines give, and everything wrong gets a clear answer.

A real process serves.
"""

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import hypothesis
import numpy as np
import pytest
from PIL import Image

import mmspec

openai = pytest.importorskip("openai")
schemathesis = pytest.importorskip("schemathesis")
pytest.importorskip(
    "schemathesis.specs.openapi.schemas"
)  # read now: parsed beside a server's threads, Python 3.11 may fail to
positive_data_acceptance = pytest.importorskip("schemathesis.specs.openapi.checks").positive_data_acceptance
pytest.importorskip("fastapi")

PROMPT, TEXT, KEY = "a red heart, 3d style", "Hello there. And you?", "correct horse"


@contextmanager
def serving(log: Path, *options: str, key: str = "") -> Iterator[str]:
    """The address of a server in a process of its own, ended by SIGTERM."""
    environment = {**os.environ, "MMSPEC_API_KEY": key, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mmspec", "serve", "--port", "0", "--dtype", "fp64", "--device", "cpu", *options]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stderr=out, stdout=out, env=environment)
    try:
        until = time.monotonic() + 120
        while (
            not (found := re.search(r"at (http://\S+)", log.read_text()))
            and process.poll() is None
            and time.monotonic() < until
        ):
            time.sleep(0.1)
        assert found, log.read_text()
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM, log.read_text()
        assert "Application shutdown complete" in log.read_text()


@pytest.fixture(scope="module")
def folders(model_folder: Path, speech_folder: Path, vision_folder: Path) -> tuple[str, ...]:
    return str(model_folder), str(speech_folder), str(vision_folder)


@pytest.fixture(scope="module")
def address(folders, tmp_path_factory) -> Iterator[str]:
    with serving(
        tmp_path_factory.mktemp("log") / "log", "--models", *folders, "--body", "1", "--text", "500", "--rows", "4"
    ) as found:
        yield found


@pytest.fixture(scope="module")
def client(address: str):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def pipes(folders) -> dict:
    tasks = ("text-to-image", "text-to-speech", "image-text-to-text")
    return {task: mmspec.pipeline(task, folder, device="cpu", dtype="fp64") for task, folder in zip(tasks, folders)}


def data_url(image: Image.Image, kind: str = "png") -> str:
    whole = io.BytesIO()
    image.save(whole, kind)
    return f"data:image/{kind};base64,{base64.b64encode(whole.getvalue()).decode()}"


def pixels(data: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def chat(question: str, image: Image.Image | None = None) -> list[dict]:
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}}] if image else []
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


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
    with client.audio.speech.with_streaming_response.create(**given, response_format="pcm") as answer:
        pieces = list(answer.iter_bytes())
    assert same(np.frombuffer(b"".join(pieces), "<i2"), exact)
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


@pytest.mark.filterwarnings("ignore:sentence")
def test_everybody_at_once(client, pipes) -> None:
    """Twelve clients of three kinds, all at the same time: each gets what it gets alone (fp64)."""
    pipe = pipes["text-to-image"]
    wanted = [np.asarray(pipe(PROMPT, seed=seed).images[0]) for seed in range(6)]
    answers = [pipes["image-text-to-text"](None, "hello there", seed=seed, temperature=1.0).text for seed in range(4)]
    sounds = [
        client.audio.speech.create(voice="ada", model="tiny-speech", input=TEXT, extra_body={"seed": 1}).read()
        for _ in range(2)
    ]

    def ask(number: int):
        if number < 6:
            return pixels(client.images.generate(prompt=PROMPT, extra_body={"seed": number}).data[0].b64_json)
        if number < 10:
            law = dict(seed=number - 6, temperature=1.0)
            return (
                client.chat.completions.create(model="tiny-vision", messages=chat("hello there"), **law)
                .choices[0]
                .message.content
            )
        return client.audio.speech.create(voice="ada", model="tiny-speech", input=TEXT, extra_body={"seed": 1}).read()

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, range(12)))
    assert all(np.array_equal(image, right) for image, right in zip(found[:6], wanted))
    assert found[6:10] == answers and found[10:] == sounds


WRONG = [
    ("images/generations", {"prompt": ""}, 400, "prompt is empty"),
    (
        "images/generations",
        {"prompt": PROMPT, "model": "nobody"},
        404,
        "no model 'nobody' for text-to-image is served here: there is tiny",
    ),
    ("images/generations", {"prompt": PROMPT, "model": "/etc/passwd"}, 404, "no model"),
    ("images/generations", {"prompt": PROMPT, "model": "tiny-speech"}, 404, "no model 'tiny-speech' for text-to-image"),
    ("images/generations", {"prompt": PROMPT, "drafter": "../../x"}, 400, "unknown drafter"),
    ("images/generations", {"prompt": PROMPT, "acceptance": "nonsense"}, 400, "unknown acceptance"),
    ("images/generations", {"prompt": PROMPT, "quality": "hd"}, 400, "quality: Input should be 'auto'"),
    ("images/generations", {"prompt": PROMPT, "colour": "red"}, 400, "colour: Extra inputs are not permitted"),
    ("images/generations", {"prompt": PROMPT, "size": "1024x1024"}, 400, "tiny draws 16x16"),
    ("images/generations", {"prompt": PROMPT, "n": 5}, 400, "at most 4"),
    ("images/generations", {"prompt": PROMPT, "response_format": "url"}, 400, "response_format"),
    ("images/generations", {"prompt": "x" * 501}, 400, "prompt has 501 characters, and 500 are the most"),
    ("images/generations", {}, 400, "prompt: Field required"),
    ("images/generations", [], 400, "the body"),
    ("audio/speech", {"input": "", "voice": "ada"}, 400, "no text|nothing to say|empty"),
    ("audio/speech", {"input": TEXT, "voice": "eve"}, 400, "tiny-speech has ada, ben"),
    ("audio/speech", {"input": TEXT, "response_format": "mp3"}, 400, "response_format"),
    ("audio/speech", {"input": TEXT, "speed": 2.0}, 400, "speed"),
    ("chat/completions", {"messages": []}, 400, "messages"),
    ("chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, 400, "role"),
    ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "tools": []}, 400, "tools"),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": "x"}], "acceptance": "tolerance:65"},
        400,
        "from 1 to 64",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": "x" * 300}] * 2},
        400,
        "have 600 characters, and 500 are the most",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": "x"}], "stop": [""]},
        400,
        "a stop sequence is empty",
    ),
    ("nowhere", {}, 404, "Not Found"),
]


@pytest.mark.parametrize(("path", "body", "status", "message"), WRONG)
def test_wrong_requests(address: str, path: str, body, status: int, message: str) -> None:
    answer = httpx.post(f"{address}/v1/{path}", json=body, timeout=60)
    assert answer.status_code == status
    assert re.search(message, answer.json()["error"]["message"]), answer.text


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png;base64,AAAA", "a picture cannot be read"),
        ("data:image/png;base64,***", "data URL is broken"),
        ("data:image/png,AAAA", "data URL is broken"),
        ("http://127.0.0.1/x.png", "this server fetches no addresses"),
        ("file:///etc/passwd", "this server fetches no addresses"),
        ("/etc/passwd", "this server fetches no addresses"),
    ],
)
def test_wrong_pictures(address: str, url: str, message: str) -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}
    answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_broken_bodies(address: str) -> None:
    """No JSON, too large with and without a stated length, a huge picture, a wrong length."""
    url = f"{address}/v1/images/generations"
    assert httpx.post(url, content=b"{", headers={"content-type": "application/json"}).status_code == 400
    large = json.dumps({"prompt": "x" * 1_100_000}).encode()
    assert httpx.post(url, content=large).status_code == 413
    chunked = httpx.post(
        url, content=iter([large[:600_000], large[600_000:]]), headers={"content-type": "application/json"}
    )
    assert chunked.status_code == 413 and "1000000 bytes" in chunked.json()["error"]["message"]
    body = {"messages": chat("what?", Image.new("1", (5000, 5000)))}
    answer = httpx.post(f"{address}/v1/chat/completions", json=body)
    assert answer.status_code == 400 and "1 pictures with 25000000 pixels" in answer.json()["error"]["message"]
    body = {"messages": [message for _ in range(9) for message in chat("what?", Image.new("1", (8, 8)))]}
    assert "9 pictures with" in httpx.post(f"{address}/v1/chat/completions", json=body).json()["error"]["message"]
    assert httpx.get(f"{address}/health", headers={"host": "evil.example"}).status_code == 400
    assert httpx.get(f"{address}/health").json()["status"] == "ok"


def test_models_health_metrics(address: str, client) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "tiny-speech", "tiny-vision"]
    found = client.models.retrieve("tiny-speech")
    assert found.voices == ["ada", "ben"] and "vadusa" in found.drafters and found.task == "text-to-speech"
    assert httpx.get(f"{address}/v1/models/nobody").status_code == 404
    assert httpx.get(f"{address}/health").json()["models"] == ["tiny", "tiny-speech", "tiny-vision"]
    client.images.generate(prompt=PROMPT)
    text = httpx.get(f"{address}/metrics").text
    assert re.search(r'mmspec_requests_total\{path="/v1/images/generations",status="200"\} [1-9]', text)
    assert re.search(r'mmspec_tokens_total\{model="tiny"\} [1-9]', text)
    assert 'mmspec_rows_running{model="tiny"} 0.0' in text


def test_a_client_that_leaves(address: str) -> None:
    """Its rows are given up: nothing runs a moment later."""
    with httpx.stream(
        "POST", f"{address}/v1/audio/speech", json={"input": "Hello there. " * 30, "voice": "ada"}
    ) as answer:
        next(answer.iter_raw(100))
    until = time.monotonic() + 20
    while 'mmspec_rows_running{model="tiny-speech"} 0.0' not in httpx.get(f"{address}/metrics").text:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_key_and_time_and_queue(folders, tmp_path: Path) -> None:
    """With a key, none and a wrong one are 401; with no queue a second request is 429; one that takes too long is 504."""
    options = ("--models", folders[1], "--timeout", "12", "--rows", "1", "--queue", "0", "--text", "20000")
    with serving(tmp_path / "log", *options, key=KEY) as address:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}):
            assert httpx.get(f"{address}/v1/models", headers=headers).status_code == 401
        assert httpx.get(f"{address}/health").status_code == 200
        right = {"authorization": f"Bearer {KEY}"}
        body = {"input": "Hello there. " * 1500, "response_format": "flac", "drafter": "none"}
        with ThreadPoolExecutor(1) as pool:
            long = pool.submit(lambda: httpx.post(f"{address}/v1/audio/speech", json=body, headers=right, timeout=60))
            until = time.monotonic() + 11
            while (
                'mmspec_rows_running{model="tiny-speech"} 1.0'
                not in httpx.get(f"{address}/metrics", headers=right).text
            ):
                assert time.monotonic() < until
            codes = set()
            while 429 not in codes and time.monotonic() < until:  # between two sentences there is a place for a moment
                busy = httpx.post(f"{address}/v1/audio/speech", json={"input": "Hi."}, headers=right, timeout=60)
                codes.add(busy.status_code)
            assert (
                429 in codes
                and busy.headers["retry-after"] == "2"
                and "calls are waiting already" in busy.json()["error"]["message"]
            )
            assert (
                long.result().status_code == 504 and "took more than 12 s" in long.result().json()["error"]["message"]
            )


def test_the_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "mmspec", "serve", "--port", str(taken.getsockname()[1])]
        found = subprocess.run(command, capture_output=True, text=True)
    assert (
        found.returncode == 2 and "choose another --host or --port" in found.stderr and "Traceback" not in found.stderr
    )


def test_addresses_that_are_not_public() -> None:
    from mmspec.errors import MmspecError
    from mmspec.serve.remote import fetch, public

    for address in (
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "169.254.169.254",
        "::1",
        "fe80::1%eth0",
        "::ffff:10.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
    ):
        assert not public(address)
    assert public("93.184.216.34") and public("2606:2800:220:1::1")
    for url in ("http://127.0.0.1:1/x", "http://localhost:1/x", "https://[::1]:1/x", "http://2130706433/x"):
        with pytest.raises(MmspecError, match="not public"):
            fetch(url, 100, 1.0)
    for url in ("file:///etc/passwd", "ftp://example.com/x", "http://", "nonsense"):
        with pytest.raises(MmspecError, match="not an http"):
            fetch(url, 100, 1.0)


def test_fetching(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is allowed comes; a redirect to a private or foreign place, a large answer and a slow one are refused."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    from mmspec.errors import MmspecError
    from mmspec.serve import remote

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            places = {"/away": "http://10.0.0.1/x", "/ftp": "ftp://10.0.0.1/x", "/round": "/round", "/on": "/x"}
            self.send_response(302 if self.path in places else 200)
            if self.path in places:
                self.send_header("Location", places[self.path])
            self.end_headers()
            for _ in range(5 if self.path == "/slow" else 1):
                self.wfile.write(b"x" * (5000 if self.path == "/large" else 10))
                time.sleep(0.3 if self.path == "/slow" else 0)

        def log_message(self, *arguments) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        Thread(target=found.serve_forever, daemon=True).start()
        home, honest = f"http://127.0.0.1:{found.server_port}", remote.public
        monkeypatch.setattr(remote, "public", lambda address: address == "127.0.0.1" or honest(address))
        assert remote.fetch(f"{home}/x", 1000, 5.0) == remote.fetch(f"{home}/on", 1000, 5.0) == b"x" * 10
        wrong = {
            "away": "not public",
            "ftp": "not an http",
            "round": "more than 5 redirects",
            "large": "more than 1000 bytes",
            "slow": "0.5 s",
        }
        for path, message in wrong.items():
            with pytest.raises(MmspecError, match=message):
                remote.fetch(f"{home}/{path}", 1000, 0.5)
        found.shutdown()


def test_what_is_described(address: str) -> None:
    """Requests made up from the OpenAPI description, right and wrong: answers are as described, and never a server
    error.
    """
    seen = []
    for found in schemathesis.openapi.from_url(f"{address}/openapi.json").get_all_operations():
        operation = found.ok()

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
        )
        def check(case) -> None:
            case.call_and_validate(timeout=60, excluded_checks=[positive_data_acceptance])

        check()
        seen.append(operation.path)
    assert {"/v1/images/generations", "/v1/audio/speech", "/v1/chat/completions", "/v1/models", "/health"} <= set(seen)


def test_a_killed_server(folders, tmp_path: Path) -> None:
    """A client sees a broken connection, no half answer that looks whole; the next server serves the same request."""
    body = {"messages": chat("hello there"), "seed": 5, "temperature": 1.0, "stream": True}
    log, command = (
        tmp_path / "killed",
        [sys.executable, "-m", "mmspec", "serve", "--port", "0", "--dtype", "fp64", "--models", folders[2]],
    )
    with log.open("wb") as out:
        process = subprocess.Popen(command, stderr=out, stdout=out)
    until = time.monotonic() + 120
    while not (match := re.search(r"at (http://\S+)", log.read_text())) and time.monotonic() < until:
        time.sleep(0.1)
    found = match[1]
    with (
        pytest.raises(httpx.TransportError),
        httpx.stream("POST", f"{found}/v1/chat/completions", json=body, timeout=60) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        process.kill()
        assert "data: [DONE]" not in list(lines)
    process.wait(60)
    with serving(tmp_path / "log", "--models", folders[2]) as address:
        assert "data: [DONE]" in httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).text


def test_a_model_folder_that_vanishes(folders, tmp_path: Path) -> None:
    """What was loaded, drafters too, goes on; starting without the folder is an error."""
    folder = shutil.copytree(folders[1], tmp_path / "model")
    with serving(tmp_path / "log", "--models", str(folder)) as address:
        shutil.rmtree(folder)
        answer = httpx.post(f"{address}/v1/audio/speech", json={"input": TEXT, "seed": 1}, timeout=60)
        assert answer.status_code == 200 and len(answer.content) > 1000
        answer = httpx.post(f"{address}/v1/audio/speech", json={"input": TEXT, "drafter": "vadusa"}, timeout=60)
        assert answer.status_code == 200 and len(answer.content) > 1000
        answer = httpx.post(f"{address}/v1/audio/speech", json={"input": TEXT, "drafter": "hawk"}, timeout=60)
        assert answer.status_code == 400 and "'hawk' has no weights" in answer.json()["error"]["message"]
    found = subprocess.run(
        [sys.executable, "-m", "mmspec", "serve", "--models", str(folder)], capture_output=True, text=True
    )
    assert found.returncode == 2 and "Traceback" not in found.stderr


def test_memory_comes_back(folders, tmp_path: Path) -> None:
    """After many requests at once the server holds about what it held after the first ones, once each of its threads
    has worked.
    """
    from mmspec.bench.serving import memory, server

    with server("--models", folders[0], "--rows", "8") as (address, pid):

        def load() -> int:
            def ask(seed: int) -> httpx.Response:
                body = {"prompt": PROMPT, "seed": seed, "n": 4, "temperature": seed % 4 / 4}
                return httpx.post(f"{address}/v1/images/generations", json=body, timeout=120)

            with ThreadPoolExecutor(16) as pool:
                assert {answer.status_code for answer in pool.map(ask, range(32))} == {200}
            return memory(pid)

        first = max(load() for _ in range(3))
        assert max(load() for _ in range(3)) < first + 30e6
