"""The race tab in a real browser."""

import re
from pathlib import Path

import pytest
from demo.pages import NEEDS_BROWSER, PATIENCE, tab
from PIL import Image

expect = pytest.importorskip("playwright.sync_api").expect
pytest.importorskip("gradio")
pytestmark = NEEDS_BROWSER


@pytest.mark.parametrize("kind", ["Image", "Speech", "Ask"])
def test_race(page, kind: str, tmp_path: Path) -> None:
    """The same output from both, and both times; speech can be heard, and the question is about a picture."""
    panel = tab(page, "Race")
    panel.get_by_label(kind, exact=True).check()
    if kind == "Ask":
        Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
        expect(panel.get_by_label("Prompt")).to_have_value("Describe the picture.")
        panel.locator("input[type=file]").first.set_input_files(tmp_path / "red.png")
        expect(panel.locator("img[src*='red.png']").first).to_be_visible()
    panel.get_by_role("button", name="Race").click()
    expect(panel.get_by_text("identical: yes")).to_be_visible(timeout=PATIENCE)
    expect(panel.get_by_text(re.compile(r"[\d.]+ s against [\d.]+ s"))).to_be_visible()
    assert panel.get_by_text("No picture was given.").count() == 0
    if kind == "Speech":
        expect(panel.locator("[data-testid^='waveform'], audio").filter(visible=True)).not_to_have_count(0)
        assert panel.get_by_label("Play", exact=True).filter(visible=True).count() == 2


def test_ask_without_a_picture_says_so(page) -> None:
    panel = tab(page, "Race")
    panel.get_by_label("Ask", exact=True).check()
    expect(panel.get_by_label("Prompt")).to_have_value("Describe the picture.")
    panel.get_by_role("button", name="Race").click()
    expect(panel.get_by_text("No picture was given.")).to_be_visible(timeout=PATIENCE)


def test_two_drafters_are_chosen(page) -> None:
    """Each side has a drafter of its own."""
    panel = tab(page, "Race")
    panel.get_by_role("button", name="Settings").click()
    panel.get_by_label("Right: drafter").click()
    page.get_by_role("option", name="lookup").click()
    panel.get_by_role("button", name="Race").click()
    expect(panel.get_by_text("identical: yes")).to_be_visible(timeout=PATIENCE)
    for name in ("jacobi", "lookup"):
        expect(panel.get_by_role("heading", name=f"With drafts by {name}")).to_be_visible()
