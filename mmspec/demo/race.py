"""The race tab: one seed with two drafters, or with one and without, side by side."""

import html
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import gradio as gr

from mmspec.demo import parts
from mmspec.demo.ask import NO_PICTURE, examples
from mmspec.demo.image import LEGEND, SHARE, enlarge, single
from mmspec.demo.stage import Stage, as_seed
from mmspec.engine.stats import GenerationStats
from mmspec.media import audio as sound
from mmspec.media import image as picture
from mmspec.pipelines.outputs import AudioChunk, PartialImages
from mmspec.pipelines.session import Session
from mmspec.pipelines.solo import Solo
from mmspec.targets.base import Grid

KINDS = {"Image": "text-to-image", "Speech": "text-to-speech", "Ask": "image-text-to-text"}
PROMPTS = {
    "Image": "a red heart, 3d style",
    "Speech": "Who is the fastest of them all? Nobody knows.",
    "Ask": "Describe the picture.",
}


@dataclass(frozen=True, slots=True)
class Step:
    """A racer after a round: its tokens so far, its statistics, and what gives its output for the page, `image`,
    `text` or `audio`; the argument says whether it is over.
    """

    tokens: list[list[int]]
    stats: GenerationStats
    shown: Callable[[bool], dict]


def shown_image(part: PartialImages, grid: Grid, over: bool) -> dict:
    """The first picture, with its runs outlined."""
    return {"image": single(enlarge(part.images()[0], part.stats.runs[0], grid))}


def shown_speech(chunk: AudioChunk, over: bool) -> dict:
    """How much has been said; at the end the sound too."""
    output = chunk.output
    text = {"text": f"{output.seconds:.1f} s of speech"}
    return text | ({"audio": (output.sampling_rate, sound.pcm(output.audio).numpy())} if over else {})


def shown_text(text: str, over: bool) -> dict:
    """The answer so far."""
    return {"text": text}


def image_steps(session: Session, prompt: str, path: str | None, seed: int, drafter: str) -> Iterator[Step]:
    """Rounds of drawing."""
    for part in session.stream(prompt, seed=seed, drafter=drafter):
        yield Step(part.tokens, part.stats, partial(shown_image, part, session.pipe.grid))


def speech_steps(session: Session, prompt: str, path: str | None, seed: int, drafter: str) -> Iterator[Step]:
    """Chunks of speech."""
    for chunk in session.stream(prompt, seed=seed, drafter=drafter):
        yield Step([list(row) for row in chunk.output.tokens], chunk.output.stats, partial(shown_speech, chunk))


def answer_steps(session: Session, prompt: str, path: str | None, seed: int, drafter: str) -> Iterator[Step]:
    """Rounds of answering, about a picture if there is one, at the model's temperature."""
    image = picture.read(path) if path else None
    for chunk in session.stream(image, prompt, seed=seed, drafter=drafter):
        output = chunk.output
        yield Step([list(output.tokens[0])], output.stats, partial(shown_text, output.text))


STEPS: dict[str, Callable[..., Iterator[Step]]] = {"Image": image_steps, "Speech": speech_steps, "Ask": answer_steps}


def race(runners: list[Iterator[Step]]) -> Iterator[list[Step]]:
    """The runner whose clock is behind goes on: a clock counts the runner's own rounds, so sharing a machine slows
    neither.
    """
    steps, over = [next(runner) for runner in runners], [False] * len(runners)
    yield steps
    while not all(over):
        behind = min((i for i in range(len(runners)) if not over[i]), key=lambda i: steps[i].stats.total)
        step = next(runners[behind], None)
        over[behind] = step is None
        if step is not None:
            steps = [*steps[:behind], step, *steps[behind + 1 :]]
            yield steps


def title(drafter: str) -> str:
    """What a side is called."""
    return "Plain decoding" if drafter == "none" else f"With drafts by {html.escape(drafter)}"


def board(drafter: str, step: Step, over: bool) -> list[object]:
    """What a side of the page shows: its clock, picture, text and sound."""
    shown, seconds, count = step.shown(over), step.stats.total, sum(map(len, step.tokens))
    line = f"#### {title(drafter)}\n**{seconds:.2f} s** · {count} tokens · {count / max(seconds, 1e-9):.0f} tokens/s"
    return [line, *(shown.get(kind, gr.skip()) for kind in ("image", "text", "audio"))]


def boards_of(names: tuple[str, str], steps: list[Step], over: bool) -> list[object]:
    """What both sides show."""
    return [value for name, step in zip(names, steps) for value in board(name, step, over)]


def verdict(steps: list[Step], names: tuple[str, str], notes: list[str]) -> str:
    """Whether both sides are the same, and both times, as Markdown."""
    first, second = steps
    same = "yes" if first.tokens == second.tokens else "NO"
    fast, slow = first.stats.total, second.stats.total
    times = f"{fast:.2f} s against {slow:.2f} s: {title(names[0])} is **{slow / fast:.2f} ×** as fast"
    return "\n\n".join([f"### identical: {same}", f"{times}, {', '.join(notes)}."])


def tab(stage: Stage) -> None:
    """Build the tab."""
    kinds = [kind for kind, task in KINDS.items() if task in stage.players]
    players = {kind: stage.players[KINDS[kind]] for kind in kinds}
    pictures = examples(players["Ask"].pipe.folder) if "Ask" in players else []
    first = players[kinds[0]]
    with gr.Row(elem_classes="race-fields"):
        kind = gr.Radio(kinds, value=kinds[0], label="What", min_width=320)
        prompt = gr.Textbox(PROMPTS[kinds[0]], label="Prompt", max_lines=2, max_length=300, scale=3)
    asked = gr.Image(
        pictures[0] if pictures else None,
        label="Picture to ask about",
        show_label=False,
        type="filepath",
        image_mode=None,
        height=200,
        sources=["upload", "clipboard"],
        buttons=[],
        visible=kinds[0] == "Ask",
    )
    buttons = parts.Buttons.make("Race", "Racing …")
    result = gr.Markdown("The same model and the same seed twice, side by side.", label="Result")
    boards: list[gr.components.Component] = []
    choices: list[gr.Dropdown] = []
    with gr.Row():
        for side, default in (("Left", first.pipe.drafter), ("Right", "none")):
            with gr.Column(min_width=280):
                clock = gr.Markdown(f"#### {title(default)}", label=f"{side}: clock")
                image = gr.Image(
                    label=f"{side}: picture",
                    show_label=False,
                    height=320,
                    format="png",
                    interactive=False,
                    buttons=[],
                    visible=kinds[0] == "Image",
                )
                text = gr.Textbox(label=f"{side}: output", lines=4, interactive=False, visible=kinds[0] == "Ask")
                audio = gr.Audio(label=f"{side}: sound", format="wav", interactive=False, visible=kinds[0] == "Speech")
                boards += [clock, image, text, audio]
    with gr.Accordion("Settings: drafters and seed", open=False), gr.Row():
        for side, default in (("Left", first.pipe.drafter), ("Right", "none")):
            choices.append(
                gr.Dropdown(
                    first.drafters,
                    value=default,
                    label=f"{side}: drafter",
                    info="none is plain decoding.",
                    min_width=160,
                )
            )
        seed = gr.Number(7, label="Seed", info="Empty is 0.", precision=0, min_width=120)
    legend = gr.HTML(LEGEND, visible=kinds[0] == "Image")
    parts.terms()

    def run(kind: str, prompt: str, path: str | None, seed: float | None, left: str, right: str, request: gr.Request):
        player, number, names = players[kind], as_seed(seed) or 0, (left, right)
        with player.session(request.session_hash) as session:
            # Each runs alone, without the batcher.
            runners = [STEPS[kind](player.pipe.session(Solo()), prompt, path, number, drafter) for drafter in names]
            steps: list[Step] = []
            due = 0.0

            for steps in race(runners):
                if session.interrupt:
                    break
                began = perf_counter()
                if began < due:  # who has more rounds must not have more painting beside them
                    continue
                yield "…", *boards_of(names, steps, False)
                due = began + (perf_counter() - began) / SHARE
            if session.interrupt:
                yield "Stopped.", *[gr.skip()] * len(boards)
                return
            notes = [f"seed {number}", html.escape(player.name)]
            told = f"\n\n{NO_PICTURE}" if kind == "Ask" and not path else ""
            yield verdict(steps, names, notes) + told, *boards_of(names, steps, True)

    def switch(kind: str):
        player = players[kind]
        drafters = [gr.update(choices=player.drafters, value=value) for value in (player.pipe.drafter, "none")]
        sides = [
            update
            for name in (player.pipe.drafter, "none")
            for update in (
                f"#### {title(name)}",
                gr.update(visible=kind == "Image"),
                gr.update(visible=kind != "Image", value="", lines=1 if kind == "Speech" else 4),
                gr.update(visible=kind == "Speech", value=None),
            )
        ]
        shown = [gr.update(visible=kind == "Ask"), gr.update(visible=kind == "Image")]
        return [PROMPTS[kind], "The same model and the same seed twice, side by side.", *shown, *drafters, *sides]

    kind.change(
        switch,
        kind,
        [prompt, result, asked, legend, *choices, *boards],
        api_visibility="private",
        show_progress="hidden",
    )
    buttons.connect(
        stage,
        run,
        [kind, prompt, asked, seed, *choices],
        [result, *boards],
        [result],
        "race",
        [prompt.submit],
        limit=1,
    )
