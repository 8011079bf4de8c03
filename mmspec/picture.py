"""Pictures on disk: metadata, contact sheets, and the animation of a picture being filled."""

import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from mmspec.errors import MmspecError

STILL = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
MOVING = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}


def check_output(path: Path, kinds: dict[str, str]) -> None:
    """The file can be written and its kind is known; raised before any work is done."""
    if path.suffix.lower() not in kinds:
        raise MmspecError(f"cannot write {path}: its ending must be one of {', '.join(kinds)}")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise MmspecError(f"cannot write {path}: there is no folder {folder}; make it first")
    if path.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise MmspecError(f"cannot write {path}: it is not writable; choose another place")


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """`write` a temporary file beside `path` and rename it; a failure leaves the old file as it was."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        raise MmspecError(f"cannot write {path}: {error.strerror or error}; choose another place") from None
    finally:
        partial.unlink(missing_ok=True)


def save(image: Image.Image, path: Path, metadata: dict[str, object]) -> None:
    """Write to a temporary file beside `path` and rename it; a PNG carries the metadata as text."""
    kind = STILL[path.suffix.lower()]
    options = {}
    if kind == "PNG":
        options["pnginfo"] = PngInfo()
        for key, value in metadata.items():
            options["pnginfo"].add_text(key, str(value))
    replace(path, lambda partial: image.save(partial, format=kind, **options))


def sheet(images: list[Image.Image]) -> Image.Image:
    """One picture of all, as nearly square as can be."""
    columns = next(n for n in range(1, len(images) + 1) if n * n >= len(images))
    width, height = images[0].size
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * width, rows * height), "white")
    for i, image in enumerate(images):
        page.paste(image, (i % columns * width, i // columns * height))
    return page


def filling(image: Image.Image, runs: list[int], height: int, width: int, stride: int, scale: int = 5) -> list[Image.Image]:
    """Frames of `image` being filled, one per round: drafted tokens of the round in green, its bonus token in orange.

    `runs` are the tokens that each round committed; places not drawn yet are gray.
    """
    big = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    cell_x, cell_y = big.width / width, big.height / height
    shown = Image.new("RGB", big.size, (225, 225, 225))
    frames, done = [], 0
    for run in runs:
        cells = []
        for place in range(done, done + run):
            row, column = divmod(place, stride)
            if column < width:
                left, top = round(column * cell_x), round(row * cell_y)
                box = (left, top, round((column + 1) * cell_x), round((row + 1) * cell_y))
                shown.paste(big.crop(box), (left, top))
                cells.append((box, place == done + run - 1))
        frame = shown.copy()
        pen = ImageDraw.Draw(frame)
        for (left, top, right, bottom), bonus in cells:
            pen.rectangle((left, top, right - 1, bottom - 1), outline=(233, 140, 30) if bonus else (30, 160, 80), width=max(2, scale // 2))
        frames.append(frame)
        done += run
    return [*frames, big]


def animate(frames: list[Image.Image], path: Path, milliseconds: int = 120) -> None:
    """Write an animation, the last frame held; temporary file and rename."""
    durations = [milliseconds] * (len(frames) - 1) + [2000]
    kind, rest = MOVING[path.suffix.lower()], frames[1:]
    replace(path, lambda partial: frames[0].save(partial, format=kind, save_all=True, append_images=rest, duration=durations, loop=0))
