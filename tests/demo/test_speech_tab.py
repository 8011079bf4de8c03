"""The speech tab in a real browser."""

import pytest
from demo.pages import NEEDS_BROWSER, PATIENCE, tab

expect = pytest.importorskip("playwright.sync_api").expect
pytest.importorskip("gradio")
pytestmark = NEEDS_BROWSER


def test_text_and_sound(page) -> None:
    """Pieces are played while the rest is made, the sentence that is heard is marked in the text, and all of it can be
    heard at the end.
    """
    panel = tab(page, "Speech")
    page.evaluate(
        """() => {
          window.marked = [];
          new MutationObserver(() => {
            const now = document.querySelector(".spoken [aria-current]");
            if (now && !window.marked.includes(now.textContent)) window.marked.push(now.textContent);
          }).observe(document.body, {subtree: true, attributes: true, childList: true});
        }"""
    )
    panel.get_by_label("What to say").fill("Hello there. And you?")
    panel.get_by_role("button", name="Speak").click()
    expect(panel.get_by_text("the first sound came after")).to_be_visible(timeout=PATIENCE)
    expect(panel.locator(".spoken span")).to_have_text(["Hello there.", "And you?"])
    page.wait_for_function("window.mmspec && window.mmspec.played > 0")
    expect(panel.locator("audio, [data-testid^='waveform']").first).to_be_attached(timeout=PATIENCE)
    page.wait_for_function("window.mmspec.next > 0.5")
    page.wait_for_function("window.marked.length === 2", timeout=PATIENCE)
    assert page.evaluate("window.marked") == ["Hello there.", "And you?"]
    expect(panel.get_by_text("acceptance exact: the same output as plain decoding")).to_be_visible()


def test_tolerance_says_that_it_is_lossy(page) -> None:
    """Above 1 the line says that the output is another, and the code has the rule."""
    panel = tab(page, "Speech")
    panel.get_by_role("button", name="Settings").click()
    panel.get_by_role("spinbutton", name="Tolerance").fill("3")
    panel.get_by_role("spinbutton", name="Tolerance").press("Tab")
    panel.get_by_role("button", name="The same in Python").click()
    expect(panel.locator(".cm-content")).to_contain_text('acceptance="tolerance:3"')
    panel.get_by_role("button", name="Speak").click()
    expect(panel.get_by_text("acceptance tolerance:3: not the same output")).to_be_visible(timeout=PATIENCE)


def test_stop(page) -> None:
    """A long text is cut short, and the button that started it works again."""
    panel = tab(page, "Speech")
    panel.get_by_label("What to say").fill("Hello there. " * 60)
    panel.get_by_role("button", name="Speak").click()
    expect(panel.get_by_text("the first sound came after")).to_be_visible(timeout=PATIENCE)
    panel.get_by_role("button", name="Stop").click()
    page.wait_for_function("window.mmspec.played === Infinity")
    expect(panel.get_by_role("button", name="Speak", exact=True)).to_be_enabled(timeout=PATIENCE)
    before = panel.get_by_text("the first sound came after").inner_text()
    page.wait_for_timeout(1500)
    assert panel.get_by_text("the first sound came after").inner_text() == before
    assert float(before.split()[0]) < 60
