"""The image tab: a picture that fills in as its tokens are verified."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from uuid import uuid4

import gradio as gr
from PIL import Image

from mmspec.demo import parts
from mmspec.demo.names import known_names, unknown_notice
from mmspec.demo.stage import Stage, as_seed
from mmspec.media import image as picture
from mmspec.pipelines.text_to_image import TextToImagePipeline
from mmspec.targets.base import Grid

EXAMPLES = ["a red heart, 3d style", "a butterfly, flat style", "a sunflower, 3d style", "a strawberry, cartoon style"]

# Pixels of the picture's longer side on the page.
SIDE = 448

# Painting takes time that decoding needs: it gets this share at most.
SHARE = 0.2

# What the outlines in a picture mean; the colours are those of `media.image.tinted`.
LEGEND = """<p class="legend">
<span class="swatch dark-green"></span><span class="swatch light-green"></span> drafted and accepted, dark and light by
turns so that rounds can be told apart ·
<span class="swatch orange"></span> the model's own token, which ends each round</p>"""


@dataclass
class Canvas:
    """What a visitor's picture consists of: one picture for each row, what each round brought, and whether to outline
    that.
    """

    images: Sequence[Image.Image] = ()
    runs: list[list[int]] = field(default_factory=list)
    overlay: bool = True

    def paint(self, grid: Grid) -> Image.Image:
        """The pictures as one, on the page's scale."""
        runs = self.runs if self.overlay else [[] for _ in self.images]
        return single(picture.sheet([enlarge(image, run, grid) for image, run in zip(self.images, runs)]))


def tab(stage: Stage) -> None:
    """Build the tab."""
    player = stage.player("text-to-image")
    pipe = player.pipe
    assert isinstance(pipe, TextToImagePipeline)
    grid, names = pipe.grid, known_names(pipe.folder)
    with gr.Row(elem_classes="stage"):
        with gr.Column(elem_classes="stage-input"):
            prompt = gr.Textbox(EXAMPLES[0], label="What to draw", max_lines=2, max_length=300)
            buttons = parts.Buttons.make("Draw", "Drawing …")
        with gr.Column(elem_classes="stage-output"):
            gr.Markdown("#### The picture, as its tokens are verified", elem_classes="heading")
            canvas = gr.Image(
                label="The picture, as its tokens are verified",
                show_label=False,
                height=SIDE,
                format="png",
                interactive=False,
                buttons=[],
                elem_classes="canvas",
            )
            numbers = gr.Markdown(label="Speed and acceptance")
            notice = gr.Markdown(label="Notice", elem_classes="notice")
            with gr.Row():
                overlay = gr.Checkbox(True, label="Show accepted runs", container=False, min_width=160)
                download = gr.DownloadButton("Download the picture", interactive=False, size="sm", min_width=160)
            gr.HTML(LEGEND)
            gr.Markdown("#### Pictures of this visit, newest first", elem_classes="heading")
            gallery = gr.Gallery(
                label="Pictures of this visit, newest first",
                show_label=False,
                columns=4,
                height="auto",
                format="png",
                object_fit="contain",
                fit_columns=False,
                elem_classes="visit-pictures",
            )
            visit, drawn = gr.State([]), gr.State(Canvas())
        with gr.Column(elem_classes="stage-settings"):
            gr.Examples(EXAMPLES, prompt, label="Examples")
            if names:
                with gr.Accordion(f"What this model can draw: {len(names)} names", open=False):
                    name = gr.Dropdown(
                        names,
                        value=None,
                        label="Names",
                        info="Type to search. Choosing one puts it in the prompt, with the style that was there.",
                        num_choices_shown=len(names),
                    )
                    gr.Markdown(" · ".join(names), elem_classes="names")
                name.input(with_name, [name, prompt], prompt, api_visibility="private", show_progress="hidden")
            with gr.Accordion("Settings", open=False):
                seed = parts.seed_field("draws the same picture")
                count = gr.Slider(1, 4, 1, step=1, label="Pictures", info="Of this seed and of those that follow it.")
                guidance = gr.Slider(
                    0,
                    6,
                    pipe.config.guidance_scale,
                    step=0.5,
                    label="Guidance",
                    info="How closely to follow the prompt; 1 is no guidance.",
                )
                temperature = parts.temperature_field(pipe.temperature)
                drafter = parts.drafter_field(player)
            fields = [prompt, seed, count, guidance, temperature, drafter]

            def code(
                prompt: str, seed: float | None, count: int, guidance: float, temperature: float, drafter: str
            ) -> str:
                settings = dict(seed=as_seed(seed), guidance_scale=guidance, temperature=temperature, drafter=drafter)
                several = {"num_images_per_prompt": int(count)} if count > 1 else {}
                save = "for i, image in enumerate(out.images):\n    image.save(f'picture-{i}.png')"
                then = save if count > 1 else 'out.images[0].save("picture.png")'
                return parts.call(player, "text-to-image", [parts.repr_code(prompt)], {**settings, **several}, then)

            parts.python_code(fields, code)
            parts.terms()

    def draw(
        prompt: str,
        seed: float | None,
        count: int,
        guidance: float,
        temperature: float,
        drafter: str,
        overlay: bool,
        visit: list,
        drawn: Canvas,
        request: gr.Request,
    ):
        with player.session(request.session_hash) as session, TemporaryDirectory(prefix="mmspec-") as folder:
            options = dict(guidance_scale=guidance, temperature=temperature, drafter=drafter)
            runs: list[list[int]] = [[] for _ in range(int(count))]
            drawn.overlay = overlay
            part, due, told = None, 0.0, unknown_notice(prompt, names)
            for part in session.stream(prompt, seed=as_seed(seed), num_images_per_prompt=int(count), **options):
                for row, new in zip(runs, part.new):
                    row += [len(new)] if new else []
                began = perf_counter()
                if part.position < part.total and began < due:
                    continue
                drawn.images, drawn.runs = part.images(), runs
                yield drawn.paint(grid), player.numbers([part.stats]), told, *[gr.skip()] * 4
                due = began + (perf_counter() - began) / SHARE
            if part is None or part.position < part.total:
                yield gr.skip(), "Stopped.", *[gr.skip()] * 5
                return
            facts = {"prompt": prompt, "seed": part.seeds[0], **options, **part.stats.facts}
            path = Path(folder, file_name(prompt, part.seeds[0]))
            picture.save(picture.sheet([enlarge(image, [], grid) for image in drawn.images]), path, facts)
            finished = [
                (image.resize((256, 256), Image.Resampling.NEAREST), f"{prompt}, seed {seed}")
                for image, seed in zip(drawn.images, part.seeds)
            ]
            visit = [*finished, *visit][:24]
            line = f"{player.numbers([part.stats])} · seed {part.seeds[0]}"
            ready = gr.update(value=str(path), interactive=True)
            yield gr.skip(), line, told, ready, visit, visit, drawn

    def repaint(overlay: bool, drawn: Canvas):
        drawn.overlay = overlay  # what is being drawn is painted so from its next round on
        return drawn.paint(grid) if drawn.images else gr.skip()

    overlay.change(repaint, [overlay, drawn], canvas, **parts.AT_ONCE)
    buttons.connect(
        stage,
        draw,
        [*fields, overlay, visit, drawn],
        [canvas, numbers, notice, download, gallery, visit, drawn],
        [numbers, notice],
        "draw",
        [prompt.submit],
    )


def enlarge(image: Image.Image, runs: list[int], grid: Grid) -> Image.Image:
    """The picture on the page's scale, with the runs outlined."""
    scale = max(1, SIDE // max(image.size))
    big = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    return picture.tinted(big, runs, grid.height, grid.width, grid.stride, grid.before) if runs else big


def single(image: Image.Image) -> Image.Image:
    """The picture with a text of its own. Gradio names files by their content, and would write one anew, where another
    visitor's page may just be reading it.
    """
    image.info["painted"] = uuid4().hex
    return image


def with_name(name: str, prompt: str) -> str:
    """The prompt with another name, and the style that it had."""
    _, comma, style = prompt.partition(",")
    return name + comma + style


def file_name(prompt: str, seed: int) -> str:
    """What a picture is called when it is downloaded."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]
    return f"{words or 'picture'}-seed-{seed}.png"
