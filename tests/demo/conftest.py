"""One demo with tiny models, and one browser, for all tests of its pages."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from demo.pages import CHROMIUM, shown, visit


@pytest.fixture(scope="session")
def folders(model_folder: Path, speech_folder: Path, vision_folder: Path) -> tuple[str, ...]:
    return str(model_folder), str(speech_folder), str(vision_folder)


@pytest.fixture(scope="session")
def address(folders, tmp_path_factory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("log") / "log"
    with shown(log, "-m", "mmspec", "demo", "--dtype", "fp64", "--models", *folders) as found:
        yield found


@pytest.fixture(scope="session")
def browser() -> Iterator:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        found = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        yield found
        found.close()


@pytest.fixture
def page(browser, address: str) -> Iterator:
    with visit(browser, address) as found:
        yield found
