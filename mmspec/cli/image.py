"""`mmspec image`."""

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from mmspec.cli.common import (
    Count,
    File,
    Model,
    ModelFlags,
    Name,
    Real,
    SamplingFlags,
    Switch,
    check_model,
    console,
    loading,
    quiet_libraries,
    say,
    software,
    summary,
    torch_device,
    torch_dtype,
)
from mmspec.errors import MmspecError

if TYPE_CHECKING:
    from mmspec.pipelines.text_to_image import TextToImagePipeline

TASK = "text-to-image"


@dataclass
class Image(SamplingFlags, ModelFlags):
    """Draw a picture from a text prompt.

    Example: mmspec image a red heart, 3d style -o heart.png --seed 7
    """

    prompt: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[PROMPT]", help_behavior_hint="")
    ] = ()
    """What to draw, in quotes or not; --list says what the model knows."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = Path("image.png")
    """Where to write it: .png (carries prompt, seed and settings), .jpg or .webp; - writes a PNG to standard output."""
    n: Count = 1
    """How many pictures; picture i has seed + i and is written to NAME-i."""
    grid: Switch = False
    """Write all pictures into one sheet."""
    guidance: Real = None
    """Classifier-free guidance, 0 to 20; 1 is none. The model's own default if left out."""
    progressive: File = None
    """Also write an animation (.gif, .webp, .png) of the first picture being filled."""
    words: Annotated[bool, tyro.conf.arg(name="list", help_behavior_hint="")] = False
    """Draw nothing, and list the words that the model was trained on."""
    pixels: Annotated[str | None, tyro.conf.arg(metavar="WIDTHxHEIGHT", help_behavior_hint="")] = None
    """The pictures' size in pixels, for models of transformers that draw more than one: Emu3 and Lumina-mGPT."""
    image_tokenizer: File = None
    """The original checkpoint's vqgan.ckpt or vqgan.safetensors, for Chameleon's kin whose folder does not hold it."""
    family: Name = None
    """What a folder of transformers holds where its config.json does not tell: lumina_mgpt, for one."""
    model: Model = "emoji-64"
    """A bundled name, a folder, or a hub id; of transformers: Janus, Emu3, Anole, Lumina-mGPT, LlamaGen; of diffusers:
    GLM-Image."""

    def run(self) -> int:
        from mmspec.media import image as media

        if self.words:
            return self._print_words()
        prompt, paths = self._read_arguments()
        with loading(self.model, self.quiet):
            pipe = self._load()
        grid = pipe.grid
        columns = (TextColumn("drawing"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=self.quiet or not console.is_terminal, transient=True) as bar:
            task = bar.add_task("", total=grid.tokens)

            def show(pipe: "TextToImagePipeline", step: int, position: int, callback_kwargs: dict) -> None:
                bar.update(task, completed=position)

            output = pipe(
                prompt,
                seed=self.seed,
                num_images_per_prompt=self.n,
                guidance_scale=self.guidance,
                callback_on_step_end=show,
                **self.sampling_kwargs,
            )
        stats, seed = output.stats, output.seeds[0]
        facts = {
            "prompt": prompt,
            "seed": seed,
            "model": self.model,
            "guidance": pipe.config.guidance_scale if self.guidance is None else self.guidance,
            **self.facts(pipe.sampling_defaults),
            "dtype": self.dtype,
            "software": software(),
        } | stats.facts
        if str(self.out) == "-":
            buffer = io.BytesIO()
            media.write(media.sheet(output.images), buffer, "PNG", facts)
            sys.stdout.buffer.write(buffer.getvalue())
            sys.stdout.buffer.flush()
        elif len(paths) == 1:
            media.save(media.sheet(output.images), paths[0], facts)
        else:
            for path, image, seed in zip(paths, output.images, output.seeds, strict=True):
                media.save(image, path, facts | {"seed": seed})
        if self.progressive:
            frames = media.filling(output.images[0], stats.runs[0], grid.height, grid.width, grid.stride, grid.before)
            media.animate(frames, self.progressive)
        if not self.quiet:
            written = [str(path) for path in (*paths, self.progressive) if path]
            say(f"{', '.join(written)}: {stats.total:.2f} s, {summary(stats, output.seeds[0])}")
        return 0

    def _load(self) -> "TextToImagePipeline":
        from mmspec.pipelines.text_to_image import TextToImagePipeline

        quiet_libraries()
        options: dict = {"torch_dtype": torch_dtype(self.dtype)} | self._read_pixels()
        given = {"image_tokenizer": self.image_tokenizer, "family": self.family}
        options |= {name: value for name, value in given.items() if value is not None}
        pipe = TextToImagePipeline.from_pretrained(self.model, **options).to(torch_device(self.device))
        pipe.deterministic, pipe.compiled = self.deterministic, self.compile
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _read_arguments(self) -> tuple[str, list[Path]]:
        """The prompt and the files to write, checked before anything is loaded; "standard output" for -."""
        from mmspec.pipelines.families import check_decoder, check_family, draws, folder_family
        from mmspec.pipelines.request import ImageRequest

        if not self.prompt:
            raise MmspecError("there is no prompt: say what to draw, as in: mmspec image a red heart")
        prompt, paths = " ".join(self.prompt), self._paths()
        ImageRequest(prompt, 0, None, 1, 1.0 if self.guidance is None else self.guidance)
        self.check_sampling()
        folder = check_model(self.model, TASK, self.drafter, self.dtype, self.device)
        options = {"pixels": self.pixels, "image-tokenizer": self.image_tokenizer, "family": self.family}
        self._read_pixels()
        if draws(folder):
            if self.family is not None:
                check_family(self.family)
            check_decoder(self.family or folder_family(folder), folder, self.image_tokenizer)
        elif any(options.values()):
            name = next(name for name, value in options.items() if value)
            raise MmspecError(f"{self.model} draws pictures of one size with parts of its own: leave --{name} out")
        return prompt, paths

    def _read_pixels(self) -> dict[str, int]:
        """Width and height, if they were given."""
        if self.pixels is None:
            return {}
        width, _, height = self.pixels.lower().partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            raise MmspecError(f"--pixels {self.pixels}: give width and height in pixels, as in 720x720")
        return {"width": int(width), "height": int(height)}

    def _paths(self) -> list[Path]:
        """The files to write."""
        from mmspec import files
        from mmspec.media import image as media

        if not 1 <= self.n <= 64:
            raise MmspecError(f"--n {self.n} is out of range: give a number from 1 to 64")
        single = self.n == 1 or self.grid
        if str(self.out) == "-":
            if not single:
                raise MmspecError(f"standard output takes one picture, not {self.n}: add --grid, or give a file")
            if sys.stdout is None or sys.stdout.isatty():
                raise MmspecError("cannot write a picture to a terminal: add a pipe, or give a file")
        paths = [self.out] if single else [self.out.with_stem(f"{self.out.stem}-{i}") for i in range(self.n)]
        for path in paths if str(self.out) != "-" else []:
            files.check_output(path, media.STILL)
        if self.progressive:
            files.check_output(self.progressive, media.MOVING)
            if self.progressive.absolute() in [path.absolute() for path in paths]:
                raise MmspecError(f"--progressive and --out both name {self.progressive}: give two names")
        return paths if str(self.out) != "-" else [Path("standard output")]

    def _print_words(self) -> int:
        """What the model was trained on, group by group, on standard output."""
        from mmspec import zoo
        from mmspec.pipelines.vocabulary import Vocabulary

        folder = check_model(self.model, TASK, None, self.dtype, self.device)
        vocabulary = Vocabulary.of(folder)
        if vocabulary is None:
            raise MmspecError(f"{folder} has no {zoo.VOCABULARY}: see the model's card for what it can draw")
        for line in vocabulary.lines():
            print(line)
        return 0
