"""The page: tabs over one stage."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from mmspec.demo import ask, how, image, race, speech
from mmspec.demo.choice import TABS
from mmspec.demo.stage import Stage

BUILDERS: dict[str, Callable[[Stage], None]] = {
    "Image": image.tab,
    "Speech": speech.tab,
    "Ask": ask.tab,
    "Race": race.tab,
    "How": how.tab,
}

# On a phone the result comes before the settings, in one column.
STYLE = """
.gradio-container { max-width: 1200px !important }
.stage { display: grid !important; gap: 16px; grid-template-columns: 2fr 3fr; grid-template-rows: auto 1fr;
  grid-template-areas: "input output" "settings output"; align-items: start }
.stage.even { grid-template-columns: 1fr 1fr }
.stage-input { grid-area: input; min-width: 0 !important }
.stage-output { grid-area: output; min-width: 0 !important }
.stage-settings { grid-area: settings; min-width: 0 !important }
.heading h4 { margin: 0 !important }
.legend { font-size: .9em; margin: 0 }
.swatch { display: inline-block; width: .9em; height: .9em; border-radius: 2px; vertical-align: -.1em }
.dark-green { background: rgb(30, 160, 80) }
.light-green { background: rgb(120, 210, 150) }
.orange { background: rgb(233, 140, 30) }
.notice { border-left: 4px solid rgb(233, 140, 30); padding-left: 12px }
.notice:not(:has(p)) { display: none !important }
.html-container { padding: 0 !important }
.names { max-height: 160px; overflow-y: auto }
.spoken { font-size: 1.15em; line-height: 1.6; margin: 0 }
.spoken [aria-current] { background: rgba(233, 140, 30, .35); border-radius: 4px }
.spoken .heard { text-decoration: underline; text-decoration-color: rgb(30, 160, 80) }
.prose table { display: block; overflow-x: auto; width: 100% }
.prose th, .prose td { word-break: normal !important; overflow-wrap: normal !important; white-space: nowrap }
.icon-button-wrapper:not(:has(button, a)) { display: none !important }
.wrap.hide { visibility: hidden }
.canvas { height: min(448px, 90vw) !important }
footer .divider { display: none }
footer { gap: 16px }
@media (max-width: 640px) {
  .gradio-container main { padding: 8px !important }
  .tab-container button { padding: 0 9px !important }
  .asked { height: 170px !important }
  .stage, .stage.even { grid-template-columns: minmax(0, 1fr); grid-template-rows: auto;
    grid-template-areas: "input" "output" "settings" }
}
"""

HEAD = "# mmspec\nThe same output, up to two and a half times sooner: drafts are verified by the model itself."


def build(stage: Stage, tabs: list[str] | None = None) -> gr.Blocks:
    """The page with these tabs, or with all whose models are there."""
    with gr.Blocks(title="mmspec", delete_cache=(3600, 3600)) as page:
        gr.Markdown(HEAD)
        for name, task in TABS.items():
            if name in tabs if tabs else not task or task in stage.players:
                with gr.Tab(name, id=name.lower()):
                    BUILDERS[name](stage)
        page.unload(stage.stop)
    page.queue(max_size=32, default_concurrency_limit=8)
    return page


def launch(page: gr.Blocks, **options: Any) -> str | None:
    """Begin to show the page; options are those of Gradio's `launch`. The public link, if there is one."""
    _, _, link = page.launch(
        theme=gr.themes.Soft(),
        css=STYLE,
        max_file_size="20mb",
        footer_links=["api", "settings"],
        quiet=True,
        ssr_mode=False,
        prevent_thread_lock=True,
        **options,
    )
    return link
