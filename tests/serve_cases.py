"""A server of its own process, and what requests are compared with."""

import base64
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

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


def data_url(image: Image.Image, kind: str = "png") -> str:
    whole = io.BytesIO()
    image.save(whole, kind)
    return f"data:image/{kind};base64,{base64.b64encode(whole.getvalue()).decode()}"


def pixels(data: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def chat(question: str, image: Image.Image | None = None) -> list[dict]:
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}}] if image else []
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
