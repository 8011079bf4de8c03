"""The image tab: a picture that fills in as its tokens are verified."""

from time import perf_counter

import gradio as gr
from PIL import Image

from mmspec.demo.stage import Stage, as_seed
from mmspec.media import image as picture
from mmspec.pipelines.text_to_image import TextToImagePipeline
from mmspec.targets.base import Grid

EXAMPLES = ["a red heart, 3d style", "a butterfly, flat style", "a sunflower, 3d style", "a strawberry, cartoon style"]

# Pixels of the picture's longer side on the page.
SIDE = 448

# Painting takes time that decoding needs: it gets this share at most.
SHARE = 0.2


def tab(stage: Stage) -> None:
    """Build the tab."""
    player = stage.player("text-to-image")
    pipe: TextToImagePipeline = player.pipe  # type: ignore[assignment]
    grid = pipe.grid
    with gr.Row():
        with gr.Column(scale=2):
            prompt = gr.Textbox(EXAMPLES[0], label="What to draw", max_lines=2, max_length=300)
            gr.Examples(EXAMPLES, prompt, label="Examples")
            with gr.Row():
                go, stop = gr.Button("Draw", variant="primary"), gr.Button("Stop")
            overlay = gr.Checkbox(
                True, label="Show accepted runs", info="green: drafted and accepted, orange: the target's own token"
            )
            with gr.Accordion("Settings", open=False):
                seed = gr.Number(
                    7,
                    label="Seed",
                    info="The same seed draws the same picture with any drafter; empty draws one",
                    precision=0,
                )
                count = gr.Slider(1, 4, 1, step=1, label="Pictures", info="of this seed and the ones after it")
                guidance = gr.Slider(0, 6, pipe.config.guidance_scale, step=0.5, label="Guidance", info="1 is none")
                temperature = gr.Slider(
                    0, 1.5, player.pipe.temperature, step=0.1, label="Temperature", info="0 is greedy"
                )
                drafter = gr.Dropdown(
                    player.drafters, value=player.pipe.drafter, label="Drafter", info="changes the speed alone"
                )
        with gr.Column(scale=3):
            canvas = gr.Image(
                label="The picture as its tokens are verified", height=SIDE, format="png", interactive=False
            )
            numbers = gr.Markdown(label="Live numbers")
            gallery = gr.Gallery(label="Pictures of this visit, newest first", columns=4, height=200, format="png")
            visit = gr.State([])

    def draw(
        prompt: str,
        seed: float,
        count: int,
        guidance: float,
        temperature: float,
        drafter: str,
        overlay: bool,
        visit: list,
        request: gr.Request,
    ):
        with player.session(request.session_hash) as session:
            options = dict(guidance_scale=guidance, temperature=temperature, drafter=drafter)
            runs: list[list[int]] = [[] for _ in range(int(count))]
            branches, part, due = 1 + (guidance != 1), None, 0.0
            for part in session.stream(prompt, seed=as_seed(seed), num_images_per_prompt=int(count), **options):
                for row, new in zip(runs, part.new):
                    row += [len(new)] if new else []
                began = perf_counter()
                if part.position < part.total and began < due:
                    continue
                shown = [enlarge(image, run if overlay else [], grid) for image, run in zip(part.images(), runs)]
                yield picture.sheet(shown), player.numbers(part.stats, branches), gr.skip(), gr.skip()
                due = began + (perf_counter() - began) / SHARE
            if part is None or part.position < part.total:
                yield gr.skip(), "Stopped.", gr.skip(), gr.skip()
                return
            finished = [
                (image.resize((256, 256)), f"{prompt}, seed {seed}") for image, seed in zip(part.images(), part.seeds)
            ]
            visit = [*finished, *visit][:24]
            yield picture.sheet(shown), player.numbers(part.stats, branches), visit, visit

    inputs = [prompt, seed, count, guidance, temperature, drafter, overlay, visit]
    gr.on(
        [go.click, prompt.submit],
        draw,
        inputs,
        [canvas, numbers, gallery, visit],
        concurrency_limit=8,
        api_name="draw",
        show_progress="minimal",
    )
    stop.click(stage.stop, api_visibility="private", queue=False)


def enlarge(image: Image.Image, runs: list[int], grid: Grid) -> Image.Image:
    """The picture on the page's scale, with the runs tinted."""
    scale = max(1, SIDE // max(image.size))
    big = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    return picture.tinted(big, runs, grid.height, grid.width, grid.stride) if runs else big
