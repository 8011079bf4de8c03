"""The emoji picture set: free art in three styles, English names, composed backgrounds."""

import io
import json
import random
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mmspec.files import write_atomically
from recipes.packages import content, npm_pack

PACKAGES = {
    "cartoon": "emoji-datasource-google@16.0.0",
    "flat": "emoji-datasource-twitter@16.0.0",
    "3d": "@lobehub/fluent-emoji-3d@1.1.0",
}
CATEGORIES = (
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Objects",
    "Smileys & Emotion",
    "Activities",
)
BACKGROUNDS = {
    "white": (255, 255, 255),
    "yellow": (254, 211, 48),
    "green": (38, 166, 91),
    "blue": (52, 120, 246),
    "pink": (255, 159, 203),
    "black": (24, 24, 28),
}


@dataclass(frozen=True, slots=True)
class Picture:
    """One (name, style) pair; `held_out` pairs are never trained on."""

    name: str
    style: str
    held_out: bool
    category: str


def article(name: str) -> str:
    """The indefinite article of a name."""
    return "an" if name[0].lower() in "aeiou" else "a"


def caption(name: str, style: str | None = None, background: str = "white") -> str:
    """The prompt of a picture: `caption("cat", "3d", "blue") == "a cat on a blue background, 3d style"`."""
    scenery = "" if background == "white" else f" on {article(background)} {background} background"
    manner = f", {style} style" if style else ""
    return f"{article(name)} {name}{scenery}{manner}"


def compose(rgba: np.ndarray, background: str = "white") -> np.ndarray:
    """Alpha-blend an RGBA picture onto a named background: uint8 `h w 4` to uint8 `h w 3`."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    mixed = rgba[..., :3] * alpha + np.array(BACKGROUNDS[background], np.float32) * (1 - alpha)
    return np.round(mixed).astype(np.uint8)


def fetch(folder: Path) -> dict[str, Path]:
    """Download the art packages that are not there yet."""
    return {style: npm_pack(package, folder) for style, package in PACKAGES.items()}


def _english_names(archive: tarfile.TarFile) -> dict[str, tuple[str, str]]:
    """CLDR short name and category by file stem, for `CATEGORIES` without clock faces."""
    from emoji import EMOJI_DATA

    table = json.loads(content(archive, "package/emoji.json"))
    names = {}
    for row in table:
        if row["category"] not in CATEGORIES or row["subcategory"] == "time":
            continue
        character = "".join(chr(int(part, 16)) for part in row["unified"].split("-"))
        name = EMOJI_DATA.get(character, {}).get("en", row["short_name"])
        names[row["unified"].lower()] = (
            name.strip(":").replace("_", " ").replace("-", " ").replace("’", "'").lower(),
            row["category"],
        )
    return names


def build(
    folder: Path,
    size: int = 64,
    held_out: float = 0.05,
    words: int = 1,
    categories: Sequence[str] = CATEGORIES,
    seed: int = 0,
) -> tuple[np.ndarray, list[Picture]]:
    """Pictures of `categories` whose names have at most `words` words, and all hearts: RGBA as uint8 `n size size 4`,
    and what each is."""
    rgba, pictures = everything(folder, size, held_out, seed)
    rows = [
        i
        for i, p in enumerate(pictures)
        if p.category in categories and len(p.name.split()) <= words or p.name.endswith(" heart")
    ]
    return rgba[rows], [pictures[i] for i in rows]


def everything(folder: Path, size: int, held_out: float, seed: int) -> tuple[np.ndarray, list[Picture]]:
    """All pictures, resized and named, cached in `folder`."""
    cache = folder / f"pictures-{size}-{held_out}-{seed}.npz"
    if cache.exists():
        stored = np.load(cache, allow_pickle=False)
        return stored["rgba"], [
            Picture(str(n), str(s), bool(h), str(c))
            for n, s, h, c in zip(stored["names"], stored["styles"], stored["held"], stored["categories"])
        ]
    paths = fetch(folder)
    with tarfile.open(paths["cartoon"]) as archive:
        names = _english_names(archive)
    images, pictures = [], []
    rng = random.Random(seed)
    for style, path in paths.items():
        with tarfile.open(path) as archive:
            for member in sorted(archive.getmembers(), key=lambda m: m.name):
                stem = Path(member.name).stem
                if stem not in names or Path(member.name).suffix not in (".png", ".webp"):
                    continue
                image = Image.open(io.BytesIO(content(archive, member.name))).convert("RGBA").convert("RGBa")
                image = image.resize((size, size), Image.Resampling.LANCZOS).convert("RGBA")
                images.append(np.asarray(image))
                name, category = names[stem]
                pictures.append(Picture(name, style, rng.random() < held_out, category))
    rgba = np.stack(images)

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(
                file,
                rgba=rgba,
                names=[p.name for p in pictures],
                styles=[p.style for p in pictures],
                categories=[p.category for p in pictures],
                held=[p.held_out for p in pictures],
            )

    write_atomically(cache, write)
    return rgba, pictures
