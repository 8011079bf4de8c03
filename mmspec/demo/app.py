"""The app: tabs over one stage."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from mmspec.demo import ask, image, race, speech
from mmspec.demo.stage import Stage

# Tabs by name, the task that each needs.
TABS: dict[str, tuple[Callable[[Stage], None], str]] = {
    "Image": (image.tab, "text-to-image"),
    "Speech": (speech.tab, "text-to-speech"),
    "Ask": (ask.tab, "image-text-to-text"),
    "Race": (race.tab, ""),
}

# Stays readable at the width of a phone.
STYLE = """.gradio-container { max-width: 1200px !important }
@media (max-width: 640px) { .gradio-container { padding: 4px !important } }"""


def build(stage: Stage, tabs: list[str] | None = None) -> gr.Blocks:
    """The page with these tabs, or with all whose models are there."""
    with gr.Blocks(title="mmspec", delete_cache=(3600, 3600)) as page:
        gr.Markdown(
            "# mmspec\nThe same output, up to two and a half times sooner: drafts are verified by the model itself."
        )
        for name, (tab, task) in TABS.items():
            if name in tabs if tabs else not task or task in stage.players:
                with gr.Tab(name, id=name.lower()):
                    tab(stage)
        page.unload(stage.stop)
    page.queue(max_size=32, default_concurrency_limit=8)
    return page


def launch(stage: Stage, tabs: list[str] | None = None, **options: Any) -> None:
    """Show the page until Ctrl-C; options are those of Gradio's `launch`."""
    try:
        build(stage, tabs).launch(theme=gr.themes.Soft(), css=STYLE, max_file_size="20mb", **options)
    finally:
        stage.close()
