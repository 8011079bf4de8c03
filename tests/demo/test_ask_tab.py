"""The ask tab in a real browser."""

from pathlib import Path

import pytest
from demo.pages import NEEDS_BROWSER, PATIENCE, tab
from PIL import Image

import mmspec

expect = pytest.importorskip("playwright.sync_api").expect
pytest.importorskip("gradio")
pytestmark = NEEDS_BROWSER


def upload(panel, path: Path, colour: str = "red") -> None:
    Image.new("RGB", (40, 30), colour).save(path)
    panel.locator("input[type=file]").first.set_input_files(path)


def ask(panel, question: str) -> None:
    panel.get_by_label("Question", exact=True).fill(question)
    panel.get_by_label("Question", exact=True).press("Enter")


def answered(panel) -> None:
    """The question has been answered."""
    expect(panel.get_by_label("Question", exact=True)).to_have_value("", timeout=PATIENCE)
    expect(panel.get_by_role("button", name="Ask", exact=True)).to_be_enabled(timeout=PATIENCE)


def test_ask(page, tmp_path: Path) -> None:
    """A picture, a question, an answer in tinted runs; a second question goes on."""
    panel = tab(page, "Ask")
    upload(panel, tmp_path / "red.png")
    panel.get_by_label("Question", exact=True).fill("what is this?")
    panel.get_by_role("button", name="Ask", exact=True).click()
    expect(panel.get_by_text("plain decoding, which would do")).to_be_visible(timeout=PATIENCE)
    bot = panel.locator("[data-testid='bot']")
    answered(panel)
    expect(bot).to_have_count(1)
    ask(panel, "sure?")
    answered(panel)
    expect(bot).to_have_count(2)
    panel.get_by_role("button", name="New chat").click()
    expect(bot).to_have_count(0, timeout=PATIENCE)


def test_a_question_that_comes_before_the_upload_is_noticed(page, tmp_path: Path) -> None:
    """What is asked about a picture stays there when the page tells, late, that the picture has changed.

    The event is held back until the answer has begun.
    """
    panel = tab(page, "Ask")
    ids = {
        trigger[1]: dependency["id"]
        for dependency in page.evaluate("fetch('config').then((answer) => answer.json())")["dependencies"]
        for trigger in dependency["targets"]
        if trigger[1] == "change" and dependency["api_visibility"] == "private" and len(dependency["outputs"]) == 7
    }
    held = []

    def hold(route) -> None:
        if route.request.post_data_json.get("fn_index") == ids["change"] and not held:
            held.append(route)
        else:
            route.continue_()

    page.route("**/run/predict*", hold)
    page.route("**/queue/join*", hold)
    upload(panel, tmp_path / "red.png")
    panel.get_by_role("button", name="Ask", exact=True).click()
    bot = panel.locator("[data-testid='bot']")
    expect(bot).to_have_count(1, timeout=PATIENCE)
    page.wait_for_timeout(500)
    assert held, "the page did not tell that its picture changed"
    held[0].continue_()
    answered(panel)
    page.wait_for_timeout(1000)
    expect(bot).to_have_count(1)


def test_the_picture_is_read_as_the_pipeline_reads_it(page, folders, tmp_path: Path) -> None:
    """A transparent picture gets the answer that it has from Python, in half of the picture on white."""
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((200, 30, 30, 255), (0, 0, 32, 16))
    image.save(tmp_path / "half.png")
    panel = tab(page, "Ask")
    panel.locator("input[type=file]").first.set_input_files(tmp_path / "half.png")
    expect(panel.locator("img[src*='half.png']").first).to_be_visible()
    ask(panel, "what is this?")
    answered(panel)
    pipe = mmspec.pipeline("image-text-to-text", folders[2], device="cpu", dtype="fp64")
    wanted = pipe(tmp_path / "half.png", "what is this?", seed=7).text
    black = pipe(image.convert("RGB"), "what is this?", seed=7).text
    assert panel.locator("[data-testid='bot']").inner_text().split() == wanted.split() != black.split()


def test_another_picture_begins_a_new_chat(page, tmp_path: Path) -> None:
    panel = tab(page, "Ask")
    upload(panel, tmp_path / "red.png")
    bot = panel.locator("[data-testid='bot']")
    ask(panel, "what is this?")
    answered(panel)
    expect(bot).to_have_count(1)
    panel.get_by_label("Remove Image").or_(panel.get_by_label("Clear")).first.click()
    expect(bot).to_have_count(0, timeout=PATIENCE)
    upload(panel, tmp_path / "blue.png", "blue")
    ask(panel, "and this?")
    answered(panel)
    expect(bot).to_have_count(1)


def test_without_a_picture_it_says_so(page) -> None:
    panel = tab(page, "Ask")
    ask(panel, "what is this?")
    expect(panel.get_by_text("No picture was given.")).to_be_visible(timeout=PATIENCE)
    answered(panel)
    expect(panel.get_by_text("No picture was given.")).to_be_visible()
