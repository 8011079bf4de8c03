"""The race tab: one seed with and without speculation, side by side."""

import copy
import html
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any

import gradio as gr

from mmspec.demo.image import SHARE, large
from mmspec.demo.stage import Stage, seed_of
from mmspec.pipelines.solo import Solo

KINDS = {"Image": "text-to-image", "Speech": "text-to-speech", "Ask": "image-text-to-text"}
PROMPTS = {
    "Image": "a red heart, 3d style",
    "Speech": "Who is the fastest of them all? Nobody knows.",
    "Ask": "What is the capital of France?",
}

# What a runner shows: tokens so far, statistics, and how to get the output as the page shows it.
Step = tuple[list[list[int]], Any, Callable[[], dict[str, Any]]]


def drawn(part: Any, grid: Any) -> dict[str, Any]:
    return {"image": large(part.images()[0], part.stats.runs[0], grid)}


def image_steps(pipe: Any, prompt: str, seed: int, drafter: str) -> Iterator[Step]:
    for part in pipe.stream(prompt, seed=seed, drafter=drafter):
        yield part.tokens, part.stats, partial(drawn, part, pipe.grid)


def speech_steps(pipe: Any, prompt: str, seed: int, drafter: str) -> Iterator[Step]:
    for chunk in pipe.stream(prompt, seed=seed, drafter=drafter):
        out = chunk.output
        yield [list(row) for row in out.tokens], out.total, partial(dict, text=f"{out.seconds:.1f} s of speech")


def ask_steps(pipe: Any, prompt: str, seed: int, drafter: str) -> Iterator[Step]:
    for words in pipe.stream(None, prompt, seed=seed, drafter=drafter, temperature=1.0):
        yield [list(words.output.tokens[0])], words.output.stats, partial(dict, text=words.output.text)


STEPS: dict[str, Callable[..., Iterator[Step]]] = {"Image": image_steps, "Speech": speech_steps, "Ask": ask_steps}


def race(runners: list[Iterator[Step]]) -> Iterator[list[Step]]:
    """Whose clock is behind goes on: each runner's clock counts its own rounds, so that sharing a machine slows neither."""
    steps, over = [next(runner) for runner in runners], [False] * len(runners)
    yield steps
    while not all(over):
        behind = min((i for i in range(len(runners)) if not over[i]), key=lambda i: steps[i][1].total)
        found = next(runners[behind], None)
        over[behind] = found is None
        if found is not None:
            steps = [*steps[:behind], found, *steps[behind + 1 :]]
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

    def show(name: str, step: Step) -> list[Any]:
        tokens, stats, shown = step[0], step[1], step[2]()
        count = sum(map(len, tokens))
        line = f"### {name}\n**{stats.total:.2f} s** · {count} tokens · {count / max(stats.total, 1e-9):.0f} tokens/s"
        return [line, shown.get("image", gr.skip()), shown.get("text", gr.skip())]

    def run(kind: str, prompt: str, seed: float, request: gr.Request):
        player, number = players[kind], seed_of(seed)
        number = 0 if number is None else number
        default = getattr(player.pipe, "config", player.pipe).drafter
        with player.seat(request.session_hash) as seat:
            pipes = [copy.copy(seat) for _ in range(2)]
            for pipe in pipes:
                pipe.loop = Solo()
            steps: list[Step] = []
            due = 0.0

            def boards(steps: list[Step]) -> list[Any]:
                return [
                    one for name, step in zip((f"With {default}", "Plain decoding"), steps) for one in show(name, step)
                ]

            for steps in race(
                [STEPS[kind](pipe, prompt, number, drafter) for pipe, drafter in zip(pipes, (default, "none"))]
            ):
                if seat.interrupt:
                    break
                began = perf_counter()
                if began < due:  # who has more rounds must not have more painting beside them
                    continue
                yield "…", *boards(steps)
                due = began + (perf_counter() - began) / SHARE
            if seat.interrupt:
                yield "Stopped.", *[gr.skip()] * 6
                return
            (ours, fast, _), (plain, slow, _) = steps
            same = "yes" if ours == plain else "NO"
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
