"""Pictures from anywhere, and on disk: metadata, contact sheets, and the animation of a picture being filled."""

import base64
import io
import sys
import warnings
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import URLError
from urllib.request import urlopen

from PIL import Image, ImageDraw, ImageOps
from PIL.PngImagePlugin import PngInfo

from mmspec.errors import MmspecError
from mmspec.files import write_atomically

STILL = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
MOVING = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}

DRAFTED, BONUS = ((30, 160, 80), (120, 210, 150)), (233, 140, 30)

# Formats that are read, and no others: some of Pillow's start other programs.
READ = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

# Most pixels of a picture that is read, and most bytes that are fetched for one.
PIXELS, BYTES = 64_000_000, 50_000_000


def read(source: Any) -> Image.Image:
    """A picture as RGB, upright by its EXIF tag, on white where it is transparent; animations give their first frame.

    `source` is a PIL image, a path, an http(s) or data URL, bytes, or "-" for standard input.
    """
    name = f"{source!r:.80}" if isinstance(source, str | Path) else f"the picture ({type(source).__name__})"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = source if isinstance(source, Image.Image) else Image.open(_bytes(source), formats=READ)
            if image.width * image.height > PIXELS:
                raise MmspecError(
                    f"{name} has {image.width} x {image.height} pixels, and {PIXELS} are the most: make it smaller"
                )
            image = _upright(image)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                page = Image.new("RGBA", image.size, "white")
                page.alpha_composite(image)
                image = page
            elif image.mode.startswith("I"):  # 16 bits a pixel, which convert() would cut off
                image = image.point(lambda value: value / 256).convert("L")
            return image.convert("RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise MmspecError(f"{name} has too many pixels; {PIXELS} are the most: make it smaller") from None
    except MmspecError:
        raise
    except FileNotFoundError:
        raise MmspecError(f"no picture at {source}: give a path, an http(s) URL, or - for standard input") from None
    except Exception as error:  # Pillow's readers raise anything over a broken file
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise MmspecError(
            f"{name} cannot be read as a picture ({reason}): give a PNG, JPEG or WebP file that opens elsewhere"
        ) from None


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF tag says; as it is where the tags are broken."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's reader of tags raises anything over broken ones
        return image


def data_of(url: str) -> bytes:
    """The file in a data URL, `data:image/png;base64,...`; ValueError if it is broken."""
    head, comma, body = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ValueError("its head is not data:image/png;base64")
    return base64.b64decode(body, validate=True)


def _bytes(source: Any) -> Any:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return io.BytesIO(data_of(source))
    if str(source) == "-":
        return _within(sys.stdin.buffer.read(BYTES + 1), "standard input")
    if not isinstance(source, str) or not source.startswith(("http://", "https://")):
        if not isinstance(source, str | Path):
            raise MmspecError(f"a picture is a PIL image, a path, a URL or bytes, not {type(source).__name__}")
        return Path(source).expanduser()
    try:
        with urlopen(source, timeout=20) as response:
            return _within(response.read(BYTES + 1), source)
    except (URLError, HTTPException, TimeoutError) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise MmspecError(f"could not fetch {source} ({reason}): check the address and the network") from None


def _within(data: bytes, source: str) -> io.BytesIO:
    if len(data) > BYTES:
        raise MmspecError(f"{source} has more than {BYTES} bytes: give a smaller picture")
    return io.BytesIO(data)


def save(image: Image.Image, path: Path, metadata: dict[str, object]) -> None:
    """Write to a temporary file beside `path` and rename it; a PNG carries the metadata as text."""
    write_atomically(path, lambda partial: write(image, partial, STILL[path.suffix.lower()], metadata))


def write(image: Image.Image, file: Path | BinaryIO, kind: str, metadata: dict[str, object]) -> None:
    """Write a picture of `kind` to a path or a stream; a PNG carries the metadata as text."""
    options = {}
    if kind == "PNG":
        options["pnginfo"] = PngInfo()
        for key, value in metadata.items():
            options["pnginfo"].add_text(key, str(value))
    image.save(file, format=kind, **options)


def sheet(images: list[Image.Image]) -> Image.Image:
    """One picture of all, as nearly square as can be."""
    columns = next(n for n in range(1, len(images) + 1) if n * n >= len(images))
    width, height = images[0].size
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * width, rows * height), "white")
    for i, image in enumerate(images):
        page.paste(image, (i % columns * width, i // columns * height))
    return page


def filling(
    image: Image.Image, runs: list[int], height: int, width: int, stride: int, before: int = 0, scale: int = 5
) -> list[Image.Image]:
    """Frames of `image` being filled, one per round: drafted tokens of the round in green, its bonus token in orange.

    `runs` are the tokens that each round committed, `before` of which came before the picture's; places not drawn yet
    are gray.
    """
    big = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    cell_x, cell_y = big.width / width, big.height / height
    shown = Image.new("RGB", big.size, (225, 225, 225))
    frames, drawn = [], -before
    for run in runs:
        cells = []
        for position in range(drawn, drawn + run):
            row, column = divmod(position, stride)
            if row >= 0 and column < width:
                left, top = round(column * cell_x), round(row * cell_y)
                box = (left, top, round((column + 1) * cell_x), round((row + 1) * cell_y))
                shown.paste(big.crop(box), (left, top))
                cells.append((box, position == drawn + run - 1))
        frame = shown.copy()
        pen = ImageDraw.Draw(frame)
        for (left, top, right, bottom), bonus in cells:
            pen.rectangle(
                (left, top, right - 1, bottom - 1), outline=BONUS if bonus else DRAFTED[0], width=max(2, scale // 2)
            )
        frames.append(frame)
        drawn += run
    return [*frames, big]


def tinted(image: Image.Image, runs: list[int], height: int, width: int, stride: int, before: int = 0) -> Image.Image:
    """`image` with what each round committed outlined: drafted tokens in green, round by round light and dark, bonus
    tokens in orange; `before` of the tokens came before the picture's.
    """
    cell_x, cell_y = image.width / width, image.height / height
    shown = image.copy()
    pen, drawn = ImageDraw.Draw(shown), -before
    for number, run in enumerate(runs):
        for position in range(drawn, drawn + run):
            row, column = divmod(position, stride)
            if row >= 0 and column < width:
                colour = BONUS if position == drawn + run - 1 else DRAFTED[number % 2]
                box = (
                    round(column * cell_x),
                    round(row * cell_y),
                    round((column + 1) * cell_x) - 1,
                    round((row + 1) * cell_y) - 1,
                )
                pen.rectangle(box, outline=colour, width=2)
        drawn += run
    return shown


def animate(frames: list[Image.Image], path: Path, milliseconds: int = 120) -> None:
    """Write an animation, the last frame held; temporary file and rename."""
    durations = [milliseconds] * (len(frames) - 1) + [2000]
    kind, following = MOVING[path.suffix.lower()], frames[1:]
    write_atomically(
        path,
        lambda partial: frames[0].save(
            partial, format=kind, save_all=True, append_images=following, duration=durations, loop=0
        ),
    )
