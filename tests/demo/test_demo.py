"""The demos in a real browser: every tab gives its result, stop works, bad input is told, visitors do not disturb each
other.
"""

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

import mmspec

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio")
expect = sync_api.expect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]

PATIENCE = 60_000


@contextmanager
def shown(log: Path, *command: str) -> Iterator[str]:
    """The address of a demo in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-u", *command], stderr=out, stdout=out, env=environment)
    try:
        until = time.monotonic() + 180
        while (
            not (found := re.search(r"(http://\S+)", log.read_text()))
            and process.poll() is None
            and time.monotonic() < until
        ):
            time.sleep(0.2)
        assert found, log.read_text()
        yield found[1]
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def folders(model_folder: Path, speech_folder: Path, vision_folder: Path) -> tuple[str, ...]:
    return str(model_folder), str(speech_folder), str(vision_folder)


@pytest.fixture(scope="module")
def address(folders, tmp_path_factory) -> Iterator[str]:
    with shown(
        tmp_path_factory.mktemp("log") / "log", "-m", "mmspec", "demo", "--dtype", "fp64", "--models", *folders
    ) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as play:
        found = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        yield found
        found.close()


@pytest.fixture
def page(browser, address: str) -> Iterator[sync_api.Page]:
    with visit(browser, address) as found:
        yield found


@contextmanager
def visit(browser, address: str, **options) -> Iterator[sync_api.Page]:
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.get_by_role("tab", name="Image").wait_for()
    yield page
    context.close()


def tab(page, name: str):
    """Open a tab; its panel."""
    page.get_by_role("tab", name=name, exact=True).click()
    return page.get_by_role("tabpanel").filter(visible=True).first


def pixels(page, image) -> np.ndarray:
    """The picture that an <img> shows."""
    data = page.evaluate(
        """async (url) => {
          const bytes = new Uint8Array(await (await fetch(url)).arrayBuffer());
          return btoa(Array.from(bytes, (b) => String.fromCharCode(b)).join(''));
        }""",
        image.get_attribute("src"),
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def draw(panel, prompt: str = "a red heart", seed: int = 5) -> None:
    panel.get_by_label("What to draw").fill(prompt)
    panel.get_by_label("Show accepted runs").uncheck()
    panel.get_by_role("button", name="Settings").click()
    field = panel.get_by_role("spinbutton", name="Seed")
    expect(field).to_have_value("7")
    for _ in range(100):  # a page that still sets up its fields takes back what is typed
        field.fill(str(seed))
        panel.page.wait_for_timeout(300)
        if field.input_value() == str(seed):
            break
    expect(field).to_have_value(str(seed))
    panel.get_by_role("button", name="Draw").click()


def wanted(folders, prompt: str, seed: int) -> np.ndarray:
    """The picture that the pipeline draws, on the page's scale."""
    found = mmspec.pipeline("text-to-image", folders[0], device="cpu", dtype="fp64")(prompt, seed=seed).images[0]
    return np.asarray(found.resize((448, 448), Image.Resampling.NEAREST))


def check_drawn(page, panel, wanted: np.ndarray) -> None:
    """The page ends with this picture; it may show an earlier round's a moment longer than the gallery takes."""
    expect(panel.locator(".grid-wrap img, .gallery-item img, .thumbnail-item img").first).to_be_visible(
        timeout=PATIENCE
    )
    until = time.monotonic() + 5
    while (
        not np.array_equal(shown := pixels(page, panel.locator("img[src*='image']").first), wanted)
        and time.monotonic() < until
    ):
        page.wait_for_timeout(100)
    assert np.array_equal(shown, wanted)


def test_image(page, folders) -> None:
    """The picture of the pipeline, with live numbers and a gallery."""
    panel = tab(page, "Image")
    draw(panel)
    expect(panel.get_by_text("plain decoding")).to_be_visible(timeout=PATIENCE)
    check_drawn(page, panel, wanted(folders, "a red heart", 5))


def test_two_visitors(browser, address: str, folders) -> None:
    """Both draw at once; each gets what a single one gets with the same seed."""
    with visit(browser, address) as one, visit(browser, address) as two:
        panels = [tab(page, "Image") for page in (one, two)]
        for panel, seed in zip(panels, (8, 9)):
            draw(panel, seed=seed)
        for page, panel, seed in zip((one, two), panels, (8, 9)):
            check_drawn(page, panel, wanted(folders, "a red heart", seed))


def test_bad_input_is_told(page) -> None:
    """A message that people understand; the page goes on working."""
    panel = tab(page, "Image")
    draw(panel, prompt=" ")
    expect(page.get_by_text("the prompt is empty: say what to draw")).to_be_visible(timeout=PATIENCE)
    draw_again = panel.get_by_label("What to draw")
    draw_again.fill("a cat")
    panel.get_by_role("button", name="Draw").click()
    expect(panel.get_by_text("plain decoding")).to_be_visible(timeout=PATIENCE)


def test_speech(page) -> None:
    """Pieces are played while the rest is made; all of it can be heard and seen at the end."""
    panel = tab(page, "Speech")
    panel.get_by_label("What to say").fill("Hello there. And you?")
    panel.get_by_role("button", name="Speak").click()
    expect(panel.get_by_text("the first sound came after")).to_be_visible(timeout=PATIENCE)
    page.wait_for_function("window.mmspec && window.mmspec.played > 0")
    expect(panel.locator("audio, [data-testid^='waveform']").first).to_be_attached(timeout=PATIENCE)
    page.wait_for_function("window.mmspec.next > 0.5")


def test_ask(page, tmp_path: Path) -> None:
    """A picture, a question, an answer in tinted runs; a second question goes on."""
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    panel = tab(page, "Ask")
    panel.locator("input[type=file]").first.set_input_files(tmp_path / "red.png")
    panel.get_by_label("Question").fill("what is this?")
    panel.get_by_role("button", name="Ask", exact=True).click()
    expect(panel.get_by_text("plain decoding")).to_be_visible(timeout=PATIENCE)
    bot = panel.locator("[data-testid='bot']")
    expect(bot).to_have_count(1, timeout=PATIENCE)
    expect(panel.get_by_label("Question")).to_have_value("", timeout=PATIENCE)
    panel.get_by_label("Question").fill("sure?")
    panel.get_by_label("Question").press("Enter")
    expect(bot).to_have_count(2, timeout=PATIENCE)
    panel.get_by_role("button", name="New chat").click()
    expect(bot).to_have_count(0, timeout=PATIENCE)


@pytest.mark.parametrize("kind", ["Image", "Speech", "Ask"])
def test_race(page, kind: str) -> None:
    """The same output from both, and both times."""
    panel = tab(page, "Race")
    panel.get_by_label(kind, exact=True).check()
    panel.get_by_role("button", name="Race").click()
    expect(panel.get_by_text("identical: yes")).to_be_visible(timeout=PATIENCE)
    expect(panel.get_by_text(re.compile(r"[\d.]+ s against [\d.]+ s"))).to_be_visible()


def test_stop(page) -> None:
    """A long text is cut short, and the button that started it works again."""
    panel = tab(page, "Speech")
    panel.get_by_label("What to say").fill("Hello there. " * 60)
    panel.get_by_role("button", name="Speak").click()
    expect(panel.get_by_text("the first sound came after")).to_be_visible(timeout=PATIENCE)
    panel.get_by_role("button", name="Stop").click()
    assert page.evaluate("window.mmspec.played") == float("inf")
    page.wait_for_timeout(1500)
    before = panel.get_by_text("the first sound came after").inner_text()
    page.wait_for_timeout(1500)
    assert panel.get_by_text("the first sound came after").inner_text() == before
    assert float(before.split()[0]) < 60


def test_phone(browser, address: str) -> None:
    """At the width of a phone nothing is cut off, and every control has a name."""
    with visit(browser, address, viewport={"width": 390, "height": 800}) as page:
        for name in ("Image", "Speech", "Ask", "Race"):
            panel = tab(page, name)
            assert page.evaluate("document.documentElement.scrollWidth") <= 391
            for control in panel.locator("button:visible, input:visible, textarea:visible").all():
                assert control.evaluate(
                    "e => (e.innerText || e.ariaLabel || e.title || (e.labels && e.labels[0] && "
                    "e.labels[0].innerText) || e.placeholder || e.type === 'file')"
                ), control.evaluate("e => e.outerHTML")


def test_one_tab_alone(folders, tmp_path: Path, browser) -> None:
    """`python demos/image.py` shows one tab, on the bundled model."""
    script = Path(__file__).parents[2] / "demos" / "image.py"
    with shown(tmp_path / "log", str(script)) as address, visit(browser, address) as page:
        assert page.get_by_role("tab").count() == 1
