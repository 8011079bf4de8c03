"""`mmspec image`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from mmspec.cli.common import (
    ModelFlags,
    SamplingFlags,
    console,
    quiet_libraries,
    software,
    summary,
    torch_device,
    torch_dtype,
)
from mmspec.errors import MmspecError


@dataclass
class Image(SamplingFlags, ModelFlags):
    """Draw a picture from a text prompt.

    Example: mmspec image "a red heart, 3d style" -o heart.png --seed 7
    """

    prompt: tyro.conf.Positional[str]
    """What to draw."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("image.png")
    """Where to write it: .png (carries prompt, seed and settings), .jpg or .webp."""
    n: int = 1
    """How many pictures; picture i has seed + i and is written to NAME-i."""
    grid: bool = False
    """Write all pictures into one sheet."""
    guidance: float | None = None
    """Classifier-free guidance, 0 to 20; 1 is none. The model's own default if left out."""
    progressive: Path | None = None
    """Also write an animation (.gif, .webp, .png) of the first picture being filled."""
    model: str = "emoji-64"
    """A bundled name, a folder, or a hub id."""

    def run(self) -> int:
        from mmspec.media import image as media

        paths = self._paths()
        from mmspec.pipelines.text_to_image import TextToImagePipeline

        quiet_libraries()
        device = torch_device(self.device)
        pipe = TextToImagePipeline.from_pretrained(self.model, torch_dtype=torch_dtype(self.dtype)).to(device)
        pipe.set_progress_bar_config(disable=True)
        grid = pipe.grid
        columns = (TextColumn("drawing"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=self.quiet or not console.is_terminal, transient=True) as bar:
            task = bar.add_task("", total=grid.tokens)

            def show(pipe: TextToImagePipeline, step: int, position: int, callback_kwargs: dict) -> None:
                bar.update(task, completed=position)

            output = pipe(
                self.prompt,
                seed=self.seed,
                num_images_per_prompt=self.n,
                guidance_scale=self.guidance,
                callback_on_step_end=show,
                **self.sampling_kwargs,
            )
        stats, seed = output.stats, output.seeds[0]
        facts = {
            "prompt": self.prompt,
            "seed": seed,
            "model": self.model,
            "guidance": pipe.config.guidance_scale if self.guidance is None else self.guidance,
            **self.facts(pipe.temperature),
            "dtype": self.dtype,
            "software": software(),
        } | stats.facts
        if len(paths) == 1:
            media.save(media.sheet(output.images), paths[0], facts)
        else:
            for path, image, seed in zip(paths, output.images, output.seeds, strict=True):
                media.save(image, path, facts | {"seed": seed})
        if self.progressive:
            frames = media.filling(output.images[0], stats.runs[0], grid.height, grid.width, grid.stride)
            media.animate(frames, self.progressive)
        if not self.quiet:
            names = ", ".join(map(str, paths))
            console.print(
                f"{names}: {stats.total:.2f} s, {summary(stats, output.seeds[0])}", highlight=False, soft_wrap=True
            )
        return 0

    def _paths(self) -> list[Path]:
        """The files to write, checked before anything is loaded."""
        from mmspec import files
        from mmspec.media import image as media

        if not 1 <= self.n <= 64:
            raise MmspecError(f"--n {self.n} is out of range: give a number from 1 to 64")
        single = self.n == 1 or self.grid
        paths = [self.out] if single else [self.out.with_stem(f"{self.out.stem}-{i}") for i in range(self.n)]
        for path in paths:
            files.check_output(path, media.STILL)
        if self.progressive:
            files.check_output(self.progressive, media.MOVING)
            if self.progressive.absolute() in [path.absolute() for path in paths]:
                raise MmspecError(f"--progressive and --out both name {self.progressive}: give two names")
        return paths
