"""`mmspec image`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from mmspec.cli.common import console, quiet_libraries, torch_device, torch_dtype
from mmspec.errors import MmspecError


@dataclass
class Image:
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
    seed: int | None = None
    """Same seed, same picture, whatever the drafter. Random if left out, and printed."""
    guidance: float | None = None
    """Classifier-free guidance, 0 to 20; 1 is none. The model's own default if left out."""
    temperature: float | None = None
    """0 is greedy. The model's own default if left out."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most probable tokens up to this mass."""
    drafter: str | None = None
    """none (plain AR), lookup, jacobi, medusa, hawk, hawk-path. The model's own default if left out."""
    acceptance: str = "exact"
    """exact (lossless), rejection (lossless in law), tolerance:N or typical:E,D (lossy, and the result says so)."""
    progressive: Path | None = None
    """Also write an animation (.gif, .webp, .png) of the first picture being filled."""
    model: str = "emoji-64"
    """A bundled name, a folder, or a hub id."""
    dtype: str = "bf16"
    """bf16, fp32, fp64 or fp16."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N."""
    quiet: bool = False
    """No progress bar and no summary."""

    def run(self) -> int:
        from mmspec import files
        from mmspec.media import image as picture
        from mmspec.versions import versions

        if not 1 <= self.n <= 64:
            raise MmspecError(f"--n {self.n} is out of range: give a number from 1 to 64")
        alone = self.n == 1 or self.grid
        written = [self.out] if alone else [self.out.with_stem(f"{self.out.stem}-{i}") for i in range(self.n)]
        for path in written:
            files.check_output(path, picture.STILL)
        if self.progressive:
            files.check_output(self.progressive, picture.MOVING)
            if self.progressive.absolute() in [path.absolute() for path in written]:
                raise MmspecError(f"--progressive and --out both name {self.progressive}: give two names")
        from mmspec.pipelines.text_to_image import TextToImagePipeline

        quiet_libraries()
        place = torch_device(self.device)
        pipe = TextToImagePipeline.from_pretrained(self.model, torch_dtype=torch_dtype(self.dtype)).to(place)
        pipe.set_progress_bar_config(disable=True)
        columns = (TextColumn("drawing"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=self.quiet or not console.is_terminal, transient=True) as bar:
            task = bar.add_task("", total=pipe.target.grid.tokens)
            done = pipe(
                self.prompt,
                seed=self.seed,
                num_images_per_prompt=self.n,
                guidance_scale=self.guidance,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                drafter=self.drafter,
                acceptance=self.acceptance,
                callback_on_step_end=lambda pipe, step, count, new: bar.update(task, completed=count),
            )
        stats = done.stats
        facts = {
            "prompt": self.prompt,
            "seed": done.seeds[0],
            "model": self.model,
            "guidance": pipe.config.guidance_scale if self.guidance is None else self.guidance,
            "temperature": pipe.config.temperature if self.temperature is None else self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "dtype": self.dtype,
            "software": ", ".join(f"{name} {version}" for name, version in versions().items()),
        } | stats.facts
        if alone:
            picture.save(picture.sheet(done.images), self.out, facts)
        else:
            for path, image, seed in zip(written, done.images, done.seeds, strict=True):
                picture.save(image, path, facts | {"seed": seed})
        if self.progressive:
            grid = pipe.target.grid
            picture.animate(
                picture.filling(done.images[0], stats.runs[0], grid.height, grid.width, grid.stride), self.progressive
            )
        if not self.quiet:
            kept = "lossless" if stats.lossless else "NOT lossless"
            console.print(
                f"{', '.join(map(str, written))}: {stats.total:.2f} s, {stats.tokens_per_second:.0f} tokens/s, "
                f"mean acceptance length {stats.mean_acceptance_length:.2f}, {stats.drafter}, {stats.acceptance} ({kept}), seed {done.seeds[0]}",
                highlight=False,
                soft_wrap=True,
            )
        return 0
