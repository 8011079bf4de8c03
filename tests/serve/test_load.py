"""Many clients, clients that leave, limits of time and queue, and a server that is killed."""

import re
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from serve_cases import KEY, PROMPT, TEXT, chat, pixels, serving

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")

pytestmark = pytest.mark.slow


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


def test_a_client_that_leaves(address: str) -> None:
    """Its rows are given up: nothing runs a moment later."""
    with httpx.stream(
        "POST",
        f"{address}/v1/audio/speech",
        json={"input": "Hello there. " * 30, "voice": "ada", "response_format": "pcm"},
    ) as answer:
        next(answer.iter_raw(100))
    until = time.monotonic() + 20
    while 'mmspec_rows_running{model="tiny-speech"} 0.0' not in httpx.get(f"{address}/metrics").text:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_key_and_time_and_queue(folders, tmp_path: Path) -> None:
    """With a key, none and a wrong one are 401; with no queue a second request is 429; one that takes too long
    is 504.
    """
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
