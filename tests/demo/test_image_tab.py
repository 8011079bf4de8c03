"""The image tab in a real browser."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from demo.pages import NEEDS_BROWSER, PATIENCE, becomes, pixels, shown, tab, visit
from PIL import Image

import mmspec

expect = pytest.importorskip("playwright.sync_api").expect
pytest.importorskip("gradio")
pytestmark = NEEDS_BROWSER


def draw(panel, prompt: str = "a red heart", seed: int = 5, overlay: bool = False) -> None:
    panel.get_by_label("What to draw").fill(prompt)
    panel.get_by_label("Show accepted runs").set_checked(overlay)
    panel.get_by_role("button", name="Settings").click()
    field = panel.get_by_role("spinbutton", name="Seed")
    expect(field).to_have_value("7")
    for _ in range(100):  # a page that still sets up its fields takes back what is typed
        field.fill(str(seed))
        panel.page.wait_for_timeout(300)
        if field.input_value() == str(seed):
            break
    expect(field).to_have_value(str(seed))
    panel.get_by_role("button", name="Draw", exact=True).click()


def wanted(folders, prompt: str, seed: int) -> np.ndarray:
    """The picture that the pipeline draws, on the page's scale."""
    found = mmspec.pipeline("text-to-image", folders[0], device="cpu", dtype="fp64")(prompt, seed=seed).images[0]
    return np.asarray(found.resize((448, 448), Image.Resampling.NEAREST))


def canvas(panel):
    return panel.locator(".canvas img").first


def check_drawn(page, panel, wanted: np.ndarray) -> None:
    """The page ends with this picture; it may show an earlier round's a moment longer than the gallery takes."""
    expect(panel.locator(".visit-pictures img").first).to_be_visible(timeout=PATIENCE)
    becomes(page, lambda: np.array_equal(pixels(page, canvas(panel)), wanted))


def test_image(page, folders) -> None:
    """The picture of the pipeline, with live numbers, the seed, and a whole picture in the gallery."""
    panel = tab(page, "Image")
    draw(panel)
    expect(panel.get_by_text("plain decoding, which would do")).to_be_visible(timeout=PATIENCE)
    check_drawn(page, panel, wanted(folders, "a red heart", 5))
    expect(panel.get_by_text("seed 5", exact=False).first).to_be_visible()
    small = panel.locator(".visit-pictures img").first
    assert small.evaluate("e => getComputedStyle(e).objectFit") == "contain"
    box, frame = small.bounding_box(), panel.locator(".visit-pictures").bounding_box()
    assert box["y"] + box["height"] <= frame["y"] + frame["height"] + 1


def test_outlines_go_and_come(page, folders) -> None:
    """Switching them repaints a finished picture, and what is downloaded never has them."""
    panel, plain = tab(page, "Image"), wanted(folders, "a red heart", 5)
    draw(panel, overlay=True)
    expect(panel.get_by_role("button", name="Draw", exact=True)).to_be_enabled(timeout=PATIENCE)
    assert not np.array_equal(pixels(page, canvas(panel)), plain)
    panel.get_by_label("Show accepted runs").uncheck()
    becomes(page, lambda: np.array_equal(pixels(page, canvas(panel)), plain))
    panel.get_by_label("Show accepted runs").check()
    becomes(page, lambda: not np.array_equal(pixels(page, canvas(panel)), plain))
    with page.expect_download() as found:
        panel.get_by_role("button", name="Download the picture").click()
    assert found.value.suggested_filename == "a-red-heart-seed-5.png"
    image = Image.open(found.value.path())
    assert np.array_equal(np.asarray(image.convert("RGB")), plain)
    assert image.text["seed"] == "5" and image.text["lossless"] == "yes"
    expect(panel.get_by_text("dark and light by turns")).to_be_visible()


def test_two_visitors(browser, address: str, folders) -> None:
    """Both draw at once; each gets what a single one gets with the same seed."""
    with visit(browser, address) as one, visit(browser, address) as two:
        panels = [tab(page, "Image") for page in (one, two)]
        for panel, seed in zip(panels, (8, 9)):
            draw(panel, seed=seed)
        for page, panel, seed in zip((one, two), panels, (8, 9)):
            check_drawn(page, panel, wanted(folders, "a red heart", seed))


def test_buttons_show_what_runs(page) -> None:
    """While a picture is drawn, it cannot be begun and can be stopped; otherwise the reverse."""
    panel = tab(page, "Image")
    stop = panel.get_by_role("button", name="Stop")
    expect(stop).to_be_disabled()
    panel.get_by_role("button", name="Draw", exact=True).click()
    expect(panel.get_by_role("button", name="Drawing")).to_be_disabled()
    expect(panel.get_by_role("button", name="Draw", exact=True)).to_be_enabled(timeout=PATIENCE)
    expect(stop).to_be_disabled()


def test_bad_input_is_told_once(page) -> None:
    """A message that people understand, in one place; the page goes on working."""
    panel = tab(page, "Image")
    draw(panel, prompt=" ")
    expect(page.get_by_text("the prompt is empty: say what to draw")).to_have_count(1, timeout=PATIENCE)
    assert page.get_by_text("Error", exact=True).filter(visible=True).count() == 1  # the head of the message
    assert panel.get_by_text("Stopped.").count() == 0
    expect(panel.get_by_role("button", name="Draw", exact=True)).to_be_enabled()
    panel.get_by_label("What to draw").fill("a cat")
    panel.get_by_role("button", name="Draw", exact=True).click()
    expect(panel.get_by_text("plain decoding, which would do")).to_be_visible(timeout=PATIENCE)


def test_python_code_follows_the_fields(page, folders) -> None:
    """The code under "The same in Python" draws the same picture."""
    panel = tab(page, "Image")
    draw(panel, seed=6)
    panel.get_by_role("button", name="The same in Python").click()
    shown_code = panel.locator(".cm-content")
    expect(shown_code).to_contain_text("seed=6")
    code = "\n".join(shown_code.locator(".cm-line").all_inner_texts())
    found: dict = {}
    exec(code.rpartition("\n")[0], found)
    image = found["out"].images[0].resize((448, 448), Image.Resampling.NEAREST)
    check_drawn(page, panel, np.asarray(image))


def test_names_that_can_be_drawn(folders, tmp_path: Path, browser) -> None:
    """A model with a list of prompts shows its names, puts a chosen one into the prompt, and warns of others."""
    model = shutil.copytree(folders[0], tmp_path / "model")
    (model / "prompts.jsonl").write_text('{"prompt": "a red heart, 3d style"}\n{"prompt": "a cat face, flat style"}\n')
    command = ("-m", "mmspec", "demo", "--tabs", "image", "--models", str(model))
    with shown(tmp_path / "log", *command) as address, visit(browser, address) as page:
        panel = tab(page, "Image")
        panel.get_by_role("button", name="What this model can draw: 2 names").click()
        expect(panel.get_by_text("a cat face · a red heart")).to_be_visible()
        panel.get_by_label("Names").click()
        page.get_by_role("option", name="a cat face").click()
        expect(panel.get_by_label("What to draw")).to_have_value("a cat face, 3d style")
        panel.get_by_role("button", name="Draw", exact=True).click()
        expect(panel.get_by_text("plain decoding, which would do")).to_be_visible(timeout=PATIENCE)
        assert panel.get_by_text("begins with none of them").count() == 0
        expect(panel.get_by_role("button", name="Draw", exact=True)).to_be_enabled(timeout=PATIENCE)
        panel.get_by_label("What to draw").fill("a zorblax")
        panel.get_by_role("button", name="Draw", exact=True).click()
        expect(panel.get_by_text("begins with none of them")).to_be_visible(timeout=PATIENCE)
