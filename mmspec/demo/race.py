"""The race tab: one seed with and without speculation, side by side."""

import html
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter

import gradio as gr

from mmspec.demo.image import SHARE, enlarge
from mmspec.demo.stage import Stage, as_seed
from mmspec.engine.stats import GenerationStats
from mmspec.pipelines.outputs import PartialImages
from mmspec.pipelines.session import Session
from mmspec.pipelines.solo import Solo
from mmspec.targets.base import Grid

KINDS = {"Image": "text-to-image", "Speech": "text-to-speech", "Ask": "image-text-to-text"}
PROMPTS = {
    "Image": "a red heart, 3d style",
    "Speech": "Who is the fastest of them all? Nobody knows.",
    "Ask": "What is the capital of France?",
}

# What a runner shows: tokens so far, statistics, and a function that gives the output as the page shows it.
Step = tuple[list[list[int]], GenerationStats, Callable[[], dict]]


def shown_image(part: PartialImages, grid: Grid) -> dict:
    """The first picture, with its runs tinted."""
    return {"image": enlarge(part.images()[0], part.stats.runs[0], grid)}


def image_steps(session: Session, prompt: str, seed: int, drafter: str) -> Iterator[Step]:
    """Rounds of drawing."""
    for part in session.stream(prompt, seed=seed, drafter=drafter):
        yield part.tokens, part.stats, partial(shown_image, part, session.pipe.grid)


def speech_steps(session: Session, prompt: str, seed: int, drafter: str) -> Iterator[Step]:
    """Chunks of speech."""
    for chunk in session.stream(prompt, seed=seed, drafter=drafter):
        output = chunk.output
        text = f"{output.seconds:.1f} s of speech"
        yield [list(row) for row in output.tokens], output.stats, partial(dict, text=text)


def answer_steps(session: Session, prompt: str, seed: int, drafter: str) -> Iterator[Step]:
    """Rounds of answering."""
    for chunk in session.stream(None, prompt, seed=seed, drafter=drafter, temperature=1.0):
        output = chunk.output
        yield [list(output.tokens[0])], output.stats, partial(dict, text=output.text)


STEPS: dict[str, Callable[..., Iterator[Step]]] = {"Image": image_steps, "Speech": speech_steps, "Ask": answer_steps}


def race(runners: list[Iterator[Step]]) -> Iterator[list[Step]]:
    """The runner whose clock is behind goes on: a clock counts the runner's own rounds, so sharing a machine slows
    neither.
    """
    steps, over = [next(runner) for runner in runners], [False] * len(runners)
    yield steps
    while not all(over):
        behind = min((i for i in range(len(runners)) if not over[i]), key=lambda i: steps[i][1].total)
        step = next(runners[behind], None)
        over[behind] = step is None
        if step is not None:
            steps = [*steps[:behind], step, *steps[behind + 1 :]]
            yield steps


def tab(stage: Stage) -> None:
    """Build the tab."""
    kinds = [kind for kind, task in KINDS.items() if task in stage.players]
    players = {kind: stage.players[KINDS[kind]] for kind in kinds}
    with gr.Row():
        kind = gr.Radio(kinds, value=kinds[0], label="What")
        prompt = gr.Textbox(PROMPTS[kinds[0]], label="Prompt", max_lines=2, max_length=300, scale=3)
        seed = gr.Number(7, label="Seed", precision=0)
    with gr.Row():
        go, stop = gr.Button("Race", variant="primary"), gr.Button("Stop")
    result = gr.Markdown("The same model and the same seed, with drafting and without.", label="Result")
    boards = []
    with gr.Row():
        for name in ("With speculation", "Plain decoding"):
            with gr.Column():
                clock = gr.Markdown(f"### {name}", label=f"{name}: clock")
                image = gr.Image(
                    label=f"{name}: picture", height=320, format="png", interactive=False, visible=kinds[0] == "Image"
                )
                text = gr.Textbox(label=f"{name}: output", lines=4, interactive=False, visible=kinds[0] != "Image")
                boards += [clock, image, text]

    def show(name: str, step: Step) -> list:
        tokens, stats, shown = step[0], step[1], step[2]()
        count = sum(map(len, tokens))
        line = f"### {name}\n**{stats.total:.2f} s** · {count} tokens · {count / max(stats.total, 1e-9):.0f} tokens/s"
        return [line, shown.get("image", gr.skip()), shown.get("text", gr.skip())]

    def run(kind: str, prompt: str, seed: float, request: gr.Request):
        player, number = players[kind], as_seed(seed)
        number = 0 if number is None else number
        default = player.pipe.drafter
        with player.session(request.session_hash) as session:
            # Each runs alone, without the batcher.
            sessions = [player.pipe.session(Solo()) for _ in range(2)]
            steps: list[Step] = []
            due = 0.0

            def boards(steps: list[Step]) -> list:
                names = (f"With {default}", "Plain decoding")
                return [value for name, step in zip(names, steps) for value in show(name, step)]

            for steps in race(
                [STEPS[kind](session, prompt, number, drafter) for session, drafter in zip(sessions, (default, "none"))]
            ):
                if session.interrupt:
                    break
                began = perf_counter()
                if began < due:  # who has more rounds must not have more painting beside them
                    continue
                yield "…", *boards(steps)
                due = began + (perf_counter() - began) / SHARE
            if session.interrupt:
                yield "Stopped.", *[gr.skip()] * 6
                return
            (drafted, fast, _), (plain, slow, _) = steps
            same = "yes" if drafted == plain else "NO"
            times = f"{fast.total:.2f} s against {slow.total:.2f} s: **{slow.total / fast.total:.2f} ×**"
            yield f"## identical: {same}\n{times}, seed {number}, {html.escape(player.name)}", *boards(steps)

    def switch(kind: str):
        return PROMPTS[kind], *[
            gr.update(visible=(kind == "Image") == (i % 3 == 1)) if i % 3 else gr.skip() for i in range(6)
        ]

    kind.change(switch, kind, [prompt, *boards], api_visibility="private")
    gr.on(
        [go.click, prompt.submit],
        run,
        [kind, prompt, seed],
        [result, *boards],
        concurrency_limit=1,
        api_name="race",
        show_progress="hidden",
    )
    stop.click(stage.stop, api_visibility="private", queue=False)
