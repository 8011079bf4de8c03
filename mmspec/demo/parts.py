"""Parts that several tabs have: fields, buttons that show whether something runs, explanations, the code in Python."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from mmspec.demo.stage import Player, Stage

# How events are handled that only change the page: in no queue, in no list of the API, without a sign that they run.
AT_ONCE: dict[str, Any] = dict(api_visibility="private", show_progress="hidden", queue=False)

TERMS = {
    "token": "the piece in which a model writes: a few pixels, a moment of sound, a part of a word",
    "draft": "tokens that something small and fast guesses ahead of the model",
    "round": "one draft, and one pass of the model that checks all of it at once",
    "acceptance": "drafted tokens are kept up to the first that the model itself would not have chosen; there it puts "
    "its own",
    "plain decoding": "the same model without drafts: one pass for each token",
    "×": "how many times as fast as plain decoding, which is timed between the rounds of the same run, so that a busy "
    "machine slows both",
}


def terms() -> None:
    """A closed section that explains the words of the page, one sentence each."""
    with gr.Accordion("What these words mean", open=False):
        gr.Markdown("\n".join(f"- **{term}**: {meaning}." for term, meaning in TERMS.items()))


def seed_field(same: str) -> gr.Number:
    """The seed; `same` says what the same seed gives."""
    return gr.Number(
        7, label="Seed", info=f"The same seed {same} with any drafter. Leave it empty for a random one.", precision=0
    )


def temperature_field(default: float) -> gr.Slider:
    """The temperature, at the model's default."""
    return gr.Slider(
        0, 1.5, default, step=0.1, label="Temperature", info="0 always takes the most probable token; 1 is as trained."
    )


def drafter_field(player: Player) -> gr.Dropdown:
    """The drafter, at the model's default."""
    return gr.Dropdown(
        player.drafters,
        value=player.pipe.drafter,
        label="Drafter",
        info="What guesses tokens. It changes only the speed; none is plain decoding.",
    )


@dataclass
class Buttons:
    """The button that starts a run, and the one that stops it, of which one can be pressed at a time."""

    start: gr.Button
    stop: gr.Button
    idle: str
    busy: str

    @classmethod
    def make(cls, idle: str, busy: str) -> "Buttons":
        """Buttons side by side, with the words of the first while nothing runs and while something does."""
        with gr.Row():
            start = gr.Button(idle, variant="primary", min_width=80)
            stop = gr.Button("Stop", interactive=False, min_width=80)
        return cls(start, stop, idle, busy)

    def state(self, running: bool) -> list[object]:
        """Both buttons as they are while something runs, or nothing."""
        start = gr.update(value=self.busy if running else self.idle, interactive=not running)
        return [start, gr.update(interactive=running)]

    def connect(
        self,
        stage: Stage,
        run: Callable[..., object],
        inputs: Sequence[Component],
        outputs: Sequence[Component],
        texts: Sequence[Component],
        name: str,
        triggers: Sequence[Callable[..., Dependency]],
        limit: int = 8,
        hush: str | None = None,
    ) -> Dependency:
        """Start `run` with the button and the other triggers; `texts` are emptied first. The event of the run itself.

        `hush` is JavaScript for when the visitor stops it.
        """

        def finish(request: gr.Request) -> list[object]:
            return self.state(stage.running(request.session_hash))

        own = [self.start, self.stop]
        running = gr.on(
            [self.start.click, *triggers],
            lambda: [*self.state(True), *[""] * len(texts)],
            None,
            [*own, *texts],
            **AT_ONCE,
        ).then(run, list(inputs), list(outputs), concurrency_limit=limit, api_name=name, show_progress="hidden")
        running.then(finish, None, own, **AT_ONCE)
        running.failure(finish, None, own, **AT_ONCE)
        self.stop.click(stage.stop, js=hush, api_visibility="private", queue=False)
        return running


def python_code(fields: Sequence[Component], code: Callable[..., str]) -> None:
    """A closed section with the code that does what the fields say; `code` makes it from their values."""
    with gr.Accordion("The same in Python", open=False):
        shown = gr.Code(
            code(*(field.value for field in fields)),
            language="python",
            label="The same in Python",
            show_label=False,
            show_line_numbers=False,
            wrap_lines=True,
            interactive=False,
        )
    gr.on(
        [field.change for field in fields],  # type: ignore[attr-defined]
        code,
        list(fields),
        shown,
        **AT_ONCE,
    )


def call(player: Player, task: str, arguments: list[str], settings: Mapping[str, object], then: str) -> str:
    """Code that loads the model, calls it and does something with `out`; settings that are None are left out."""
    dtype = str(player.pipe.transformer.dtype).removeprefix("torch.")
    loading = [f'"{task}"', repr_code(player.name), *([] if dtype == "bfloat16" else [f'dtype="{dtype}"'])]
    given = arguments + [f"{name}={repr_code(value)}" for name, value in settings.items() if value is not None]
    lines = ",\n    ".join(given)
    return f"import mmspec\n\npipe = mmspec.pipeline({', '.join(loading)})\nout = pipe(\n    {lines},\n)\n{then}"


def repr_code(value: object) -> str:
    """A value as code, strings in double quotes, whole numbers without a point."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return repr(int(value) if isinstance(value, float) and value.is_integer() else value)
