"""What tests of the demo's pages share: a demo in a process of its own, a browser's visit, and what a page shows."""

import base64
import io
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]

# Milliseconds for what the page does, and for the models to load.
PATIENCE, LOADING = 60_000, 180_000


@contextmanager
def shown(log: Path, *command: str, **environment: str) -> Iterator[str]:
    """The address of a demo in a process of its own, whose models may still be loading."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRADIO_ANALYTICS_ENABLED": "False", **environment}
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-u", *command], stderr=out, stdout=out, env=environment)
    try:
        until = time.monotonic() + 60
        while (
            not (found := re.search(r"(http://\S+)", log.read_text()))
            and process.poll() is None
            and time.monotonic() < until
        ):
            time.sleep(0.1)
        assert found, log.read_text()
        yield found[1]
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def visit(browser, address: str, first: str = "Image", **options) -> Iterator:
    """A page of its own at the demo, once its models are loaded."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.get_by_role("tab", name=first).wait_for(timeout=LOADING)
    yield page
    context.close()


def tab(page, name: str):
    """Open a tab; its panel."""
    page.get_by_role("tab", name=name, exact=True).click()
    return page.get_by_role("tabpanel").filter(visible=True).first


def pixels(page, image) -> np.ndarray:
    """The picture at the address of an <img> or of a link."""
    data = page.evaluate(
        """async (url) => {
          const bytes = new Uint8Array(await (await fetch(url)).arrayBuffer());
          return btoa(Array.from(bytes, (b) => String.fromCharCode(b)).join(''));
        }""",
        image.get_attribute("src") or image.get_attribute("href"),
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def becomes(page, condition, seconds: float = 30) -> None:
    """Wait until a condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not become true"
        page.wait_for_timeout(100)
