"""How the pages look, at the width of a phone and of a desk, and the page that explains a round."""

import json
import shutil
from pathlib import Path

import pytest
from demo.pages import LOADING, NEEDS_BROWSER, PATIENCE, shown, tab, visit

expect = pytest.importorskip("playwright.sync_api").expect
pytest.importorskip("gradio")
pytestmark = NEEDS_BROWSER

PHONE = {"width": 390, "height": 844}
TABS = ("Image", "Speech", "Ask", "Race", "How")


def test_phone(browser, address: str) -> None:
    """At the width of a phone nothing is cut off, and every control has a name."""
    with visit(browser, address, viewport=PHONE) as page:
        for name in TABS:
            panel = tab(page, name)
            assert page.evaluate("document.documentElement.scrollWidth") <= 391
            for control in panel.locator("button:visible, input:visible, textarea:visible").all():
                assert control.evaluate(
                    "e => (e.innerText || e.ariaLabel || e.title || (e.labels && e.labels[0] && "
                    "e.labels[0].innerText) || e.placeholder || e.type === 'file')"
                ), control.evaluate("e => e.outerHTML")


@pytest.mark.parametrize(("name", "output"), [("Image", ".canvas"), ("Speech", ".spoken"), ("Ask", ".stage-output")])
def test_result_comes_before_the_settings_on_a_phone(browser, address: str, name: str, output: str) -> None:
    with visit(browser, address, viewport=PHONE) as page:
        panel = tab(page, name)
        result = panel.locator(output).first.bounding_box()
        settings = panel.get_by_role("button", name="Settings").bounding_box()
        button = panel.get_by_role("button", name="Stop").bounding_box()
        assert button["y"] < result["y"] < settings["y"]
        assert result["y"] < (2 if name == "Ask" else 1) * PHONE["height"]


def test_labels_do_not_cover_the_picture(page) -> None:
    """Nothing of the page lies over the picture."""
    panel = tab(page, "Image")
    panel.get_by_role("button", name="Draw").click()
    expect(panel.get_by_text("plain decoding, which would do")).to_be_visible(timeout=PATIENCE)
    covered = panel.locator(".canvas img").first.evaluate(
        """(image) => {
          const box = image.getBoundingClientRect(), over = new Set();
          for (let i = 1; i < 20; i++) for (let j = 1; j < 20; j++) {
            const found = document.elementFromPoint(box.x + box.width * i / 20, box.y + box.height * j / 20);
            if (found && found.closest("label, .icon-button-wrapper")) over.add(found.outerHTML);
          }
          return [...over];
        }"""
    )
    assert covered == []


def test_table_breaks_no_words(browser, tmp_path: Path, speech_folder: Path) -> None:
    """The table of what tolerance costs keeps its words whole, and a phone scrolls it."""
    model = shutil.copytree(speech_folder, tmp_path / "model")
    row = {"drafter": "vadusa", "acceptance": "tolerance:3", "mean_acceptance_length": 3, "word_error_rate": 0.1}
    rows = [row | {"over_ar": 0.019, "over_ar_error": 0.009}]
    (model / "quality.json").write_text(json.dumps({"sentences": 300, "rows": rows}))
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | {"drafter": "vadusa"}))
    with shown(tmp_path / "log", "-m", "mmspec", "demo", "--tabs", "speech", "--models", str(model)) as address:
        for width in (390, 1200):
            with visit(browser, address, "Speech", viewport={"width": width, "height": 800}) as page:
                panel = tab(page, "Speech")
                panel.get_by_role("button", name="What tolerance gains and costs").click()
                expect(panel.get_by_role("cell", name="+1.9 ± 0.9")).to_be_visible()
                for cell in panel.locator("th").all():
                    assert cell.bounding_box()["height"] < 60, cell.inner_text()
                assert page.evaluate("document.documentElement.scrollWidth") <= width + 1


def test_how_it_works(page) -> None:
    """The round moves, can be held, and every word of the pages is explained."""
    panel = tab(page, "How")
    expect(panel.get_by_role("img", name="four guessed words are checked in one pass")).to_be_visible()
    moving = "e => getComputedStyle(e).opacity"
    part = panel.locator(".moves-plain-2").first
    seen = set()
    for _ in range(40):
        seen.add(part.evaluate(moving))
        page.wait_for_timeout(300)
    assert {"0", "1"} <= seen
    panel.get_by_label("Hold the drawing").check()
    assert part.evaluate("e => getComputedStyle(e).animationPlayState") == "paused"
    for word in ("token", "draft", "round", "acceptance", "plain decoding", "×"):
        expect(panel.locator("strong").get_by_text(word, exact=True)).to_be_visible()


def test_how_it_works_without_motion(browser, address: str) -> None:
    """Who wants no motion sees the end of the round at once."""
    with visit(browser, address, reduced_motion="reduce", color_scheme="dark") as page:
        panel = tab(page, "How")
        part = panel.locator(".moves-plain-2").first
        assert part.evaluate("e => [getComputedStyle(e).animationName, getComputedStyle(e).opacity]") == ["none", "1"]
        expect(panel.get_by_label("Hold the drawing")).to_be_hidden()


def test_footer(page) -> None:
    """The footer ends with a word."""
    text = page.locator("footer").inner_text()
    assert "API" in text and not text.strip().endswith("·")


def test_the_page_waits_for_the_models(folders, tmp_path: Path, browser) -> None:
    """Who opens the address at once sees what is loading, and then the demo without doing anything."""
    command = ("-m", "mmspec", "demo", "--tabs", "image", "--models", folders[0])
    with shown(tmp_path / "log", *command) as address:
        page = browser.new_page()
        page.goto(address)
        expect(page.get_by_role("status")).to_contain_text("loading")
        expect(page.get_by_label("What to draw")).to_be_visible(timeout=LOADING)
        page.close()


def test_one_tab_alone(folders, tmp_path: Path, browser) -> None:
    """`python demos/image.py` shows one tab, on the bundled model."""
    script = Path(__file__).parents[2] / "demos" / "image.py"
    with shown(tmp_path / "log", str(script)) as address, visit(browser, address) as page:
        assert page.get_by_role("tab").count() == 1
