"""Scenes to talk about: emoji placed on a plain background."""

import hashlib
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from recipes.emoji_64.data import BACKGROUNDS, Picture

# Width and height of a scene in pixels.
SIZE = 128

# Names that no number goes with, or that are no thing to see.
UNCOUNTED = set(
    (
        "bacon badminton beans blueberries bowling bread broccoli butter camping cherries chopsticks collision "
        "construction cooking custard dizzy fireworks flatbread fog foggy garlic grapes houses ice lacrosse luggage "
        "mate oden pancakes peanuts popcorn sake salt skis spaghetti sparkles sushi tennis wedding wood yarn zzz"
    ).split()
)


@dataclass(frozen=True, slots=True)
class Thing:
    """A picture of the set in one of the nine cells of a 3 by 3 grid, `width` pixels wide."""

    picture: int
    cell: int
    width: int


@dataclass(frozen=True, slots=True)
class Scene:
    """Things in reading order on a background."""

    things: tuple[Thing, ...]
    background: str


def corner(thing: Thing, rng: random.Random | None = None) -> tuple[int, int]:
    """Left and top edge of a thing in its scene; `rng` shifts it by a few pixels."""
    row, column = divmod(thing.cell, 3)
    left, top = (
        round(SIZE * (1 + 2 * index) / 6) + (rng.randrange(-3, 4) if rng else 0) - thing.width // 2
        for index in (column, row)
    )
    return max(0, min(SIZE - thing.width, left)), max(0, min(SIZE - thing.width, top))


class SceneMaker:
    """Makes scenes of a picture set (`rgba[picture]`, uint8 `size size 4`) and draws them."""

    def __init__(self, rgba: np.ndarray, pictures: Sequence[Picture]):
        self.rgba, self.pictures = rgba, pictures
        self.by_name: dict[str, list[int]] = {}
        for number, picture in enumerate(pictures):
            if picture.name not in UNCOUNTED:
                self.by_name.setdefault(picture.name, []).append(number)
        self.names = sorted(self.by_name)

    def held_out(self, scene: Scene) -> bool:
        """One composition in twelve is never trained on: which names (one name: and style) on which background."""
        names = sorted({self.name(thing) for thing in scene.things})
        style = self.style(scene.things[0]) if len(scene.things) == 1 else ""
        digest = hashlib.sha256("|".join([*names, style, scene.background]).encode()).digest()
        return digest[0] % 12 == 0

    def scene(self, rng: random.Random, held_out: bool) -> Scene:
        """A random scene of one thing, several of a kind, or several kinds, whose composition is held out or not."""
        while True:
            background = rng.choice(list(BACKGROUNDS))
            form = rng.random()
            if form < 0.3:
                picture = rng.choice(self.by_name[rng.choice(self.names)])
                things = [Thing(picture, 4, rng.randrange(64, SIZE + 1))]
            else:
                count = rng.randrange(2, 7 if form < 0.55 else 6)
                names = (
                    [rng.choice(self.names)] * count if form < 0.55 else [rng.choice(self.names) for _ in range(count)]
                )
                if form > 0.8:
                    names[1] = names[0]
                cells = sorted(rng.sample(range(9), count))
                rng.shuffle(names)
                things = [
                    Thing(rng.choice(self.by_name[name]), cell, rng.randrange(32, 43))
                    for name, cell in zip(names, cells)
                ]
            scene = Scene(tuple(things), background)
            if self.held_out(scene) == held_out:
                return scene

    def draw(self, scene: Scene, rng: random.Random | None = None, worn: float = 0.0) -> Image.Image:
        """The picture, `SIZE` pixels square. `rng` shifts every thing by a few pixels; a share `worn` of pictures is
        halved and enlarged, or saved as a JPEG of little quality."""
        image = Image.new("RGB", (SIZE, SIZE), BACKGROUNDS[scene.background])
        for thing in scene.things:
            width = (thing.width, thing.width)
            picture = Image.fromarray(self.rgba[thing.picture]).resize(width, Image.Resampling.BICUBIC)
            image.paste(picture, corner(thing, rng), picture)
        if rng and rng.random() < worn:
            if rng.random() < 0.5:
                half = image.resize((SIZE // 2, SIZE // 2), Image.Resampling.BICUBIC)
                return half.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            file = io.BytesIO()
            image.save(file, "JPEG", quality=rng.randrange(15, 70))
            return Image.open(file).convert("RGB")
        return image

    def name(self, thing: Thing) -> str:
        """What a thing is called."""
        return self.pictures[thing.picture].name

    def style(self, thing: Thing) -> str:
        """The style that a thing is drawn in."""
        return self.pictures[thing.picture].style
