"""Scenes to talk about: emoji placed on a plain background, and questions whose answers are known by construction."""

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from mmspec.training.emoji import BACKGROUNDS, Picture

SIZE = 128
WHERE = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
KINDS = ("what", "count", "colour", "where", "style", "presence", "describe", "follow-up")


@dataclass(frozen=True, slots=True)
class Thing:
    """A picture of the set at one of nine places, `width` pixels wide."""

    picture: int
    place: int
    width: int


@dataclass(frozen=True, slots=True)
class Scene:
    """Things in reading order on a background."""

    things: tuple[Thing, ...]
    background: str


@dataclass(frozen=True, slots=True)
class Question:
    """A chat about a scene: questions and answers in turn, of one kind."""

    kind: str
    turns: tuple[tuple[str, str], ...]


@cache
def _english():
    import inflect

    return inflect.engine()


def many(name: str) -> str:
    return _english().plural_noun(name)


def some(name: str) -> str:
    """With its article: "a cat", "an apple"."""
    return _english().a(name)


def counted(name: str, count: int) -> str:
    return f"{NUMBERS[count]} {name if count == 1 else many(name)}"


def listed(parts: Sequence[str]) -> str:
    return _english().join(list(parts), final_sep="")


def corner(thing: Thing, chance: random.Random | None = None) -> tuple[int, int]:
    """Left and top edge of a thing on the page; `chance` shifts it by a few pixels."""
    row, column = divmod(thing.place, 3)
    left, top = (round(SIZE * (1 + 2 * at) / 6) + (chance.randrange(-3, 4) if chance else 0) - thing.width // 2 for at in (column, row))
    return max(0, min(SIZE - thing.width, left)), max(0, min(SIZE - thing.width, top))


class Studio:
    """Makes scenes of a picture set (`rgba[picture]`, uint8 `size size 4`) and asks about them."""

    def __init__(self, rgba: np.ndarray, pictures: list[Picture]):
        self.rgba, self.pictures = rgba, pictures
        self.by_name: dict[str, list[int]] = {}
        for number, picture in enumerate(pictures):
            self.by_name.setdefault(picture.name, []).append(number)
        self.names = sorted(self.by_name)

    def held_out(self, scene: Scene) -> bool:
        """One composition in twelve is never trained on: which names (one name: and style) on which background."""
        names = sorted({self.pictures[one.picture].name for one in scene.things})
        style = self.pictures[scene.things[0].picture].style if len(scene.things) == 1 else ""
        digest = hashlib.sha256("|".join([*names, style, scene.background]).encode()).digest()
        return digest[0] % 12 == 0

    def scene(self, chance: random.Random, held_out: bool) -> Scene:
        """One thing, several of a kind, or several kinds."""
        while True:
            background = chance.choice(list(BACKGROUNDS))
            form = chance.random()
            if form < 0.35:
                things = [Thing(chance.randrange(len(self.pictures)), 4, chance.randrange(64, 121))]
            else:
                count = chance.randrange(2, 7 if form < 0.6 else 6)
                names = [chance.choice(self.names)] * count if form < 0.6 else [chance.choice(self.names) for _ in range(count)]
                if form > 0.85:
                    names[1] = names[0]
                places = sorted(chance.sample(range(9), count))
                chance.shuffle(names)
                things = [Thing(chance.choice(self.by_name[name]), place, chance.randrange(32, 43)) for name, place in zip(names, places)]
            found = Scene(tuple(things), background)
            if self.held_out(found) == held_out:
                return found

    def draw(self, scene: Scene, chance: random.Random | None = None) -> Image.Image:
        """The picture, `SIZE` pixels square; `chance` shifts every thing by a few pixels."""
        page = Image.new("RGB", (SIZE, SIZE), BACKGROUNDS[scene.background])
        for thing in scene.things:
            image = Image.fromarray(self.rgba[thing.picture]).resize((thing.width, thing.width), Image.Resampling.BICUBIC)
            page.paste(image, corner(thing, chance), image)
        return page

    def name(self, thing: Thing) -> str:
        return self.pictures[thing.picture].name

    def ask(self, scene: Scene, chance: random.Random, kind: str | None = None) -> Question:
        """A question of a kind that the scene allows, or of any."""
        kind = kind or chance.choices(KINDS, (5, 4, 3, 4, 2, 5, 6, 3))[0]
        if kind == "follow-up":
            first, second = (self.ask(scene, chance, each) for each in chance.sample(("what", "count", "colour", "where", "presence"), 2))
            return Question(kind, first.turns + second.turns)
        question, answer = getattr(self, f"_{kind}")(scene, chance)
        return Question(kind, ((question, answer),))

    def _counts(self, scene: Scene) -> Counter[str]:
        return Counter(map(self.name, scene.things))

    def _what(self, scene: Scene, chance: random.Random) -> tuple[str, str]:
        counts = self._counts(scene)
        found = listed([some(name) if count == 1 else counted(name, count) for name, count in counts.items()])
        if len(scene.things) == 1:
            asked = chance.choice(("What is this?", "What is in the picture?", "What do you see?", "What does the picture show?"))
            return asked, chance.choice((f"It is {found}.", f"This is {found}.")) if "is this" in asked else f"The picture shows {found}."
        return chance.choice(("What is in the picture?", "What do you see?", "What does the picture show?")), f"The picture shows {found}."

    def _count(self, scene: Scene, chance: random.Random) -> tuple[str, str]:
        counts = self._counts(scene)
        name = chance.choice(sorted(counts)) if chance.random() < 0.85 else chance.choice(self.names)
        asked = chance.choice((f"How many {many(name)} are there?", f"How many {many(name)} do you see?", f"Count the {many(name)}."))
        count = counts[name]
        return asked, f"There {'is' if count == 1 else 'are'} {counted(name, count)}."

    def _colour(self, scene: Scene, chance: random.Random) -> tuple[str, str]:
        asked = ("What colour is the background?", "Which colour is the background?", "What is the colour of the background?")
        return chance.choice(asked), f"The background is {scene.background}."

    def _where(self, scene: Scene, chance: random.Random) -> tuple[str, str]:
        thing = chance.choice(scene.things)
        name = self.name(thing)
        places = [WHERE[one.place] for one in scene.things if self.name(one) == name]
        if len(places) == 1:
            return chance.choice(
                (f"Where is the {name}?", f"In which part of the picture is the {name}?")
            ), f"The {name} is {at(places[0])}."
        return f"Where are the {many(name)}?", f"The {many(name)} are {listed([at(place) for place in places])}."

    def _style(self, scene: Scene, chance: random.Random) -> tuple[str, str]:
        thing = chance.choice(scene.things)
        same = {self.pictures[one.picture].style for one in scene.things if self.name(one) == self.name(thing)}
        if len(same) > 1:
            return self._colour(scene, chance)
        return f"In which style is the {self.name(thing)} drawn?", f"It is drawn in the {same.pop()} style."

    def _presence(self, scene: Scene, chance: random.Random) -> tuple[str, str]:
        counts = self._counts(scene)
        yes = chance.random() < 0.5
        name = chance.choice(sorted(counts)) if yes else chance.choice([name for name in self.names if name not in counts])
        asked = chance.choice((f"Is there {some(name)} in the picture?", f"Do you see {some(name)}?"))
        return (
            asked,
            f"Yes, there {'is' if counts[name] == 1 else 'are'} {some(name) if counts[name] == 1 else counted(name, counts[name])}."
            if yes
            else f"No, there is no {name}.",
        )

    def _describe(self, scene: Scene, chance: random.Random) -> tuple[str, str]:
        asked = chance.choice(
            (
                "Describe the picture.",
                "Describe the picture in detail.",
                "Tell me everything about the picture.",
                "What can you say about this picture?",
            )
        )
        first, many_things = scene.things[0], len(scene.things) > 1
        if not many_things:
            style = self.pictures[first.picture].style
            name, size = self.name(first), "fills most of the picture" if first.width > 96 else "leaves a wide border around it"
            return asked, (
                f"The picture shows {some(name)} on {some(scene.background)} background. The {name} is in the middle and {size}. "
                f"It is drawn in the {style} style. There is nothing else in the picture."
            )
        counts = self._counts(scene)
        total = f"The picture shows {NUMBERS[len(scene.things)]} things on {some(scene.background)} background: "
        total += listed([counted(name, count) for name, count in counts.items()]) + "."
        places = [
            f"{at(WHERE[one.place])[0].upper()}{at(WHERE[one.place])[1:]} there is {some(self.name(one))}, drawn in the {self.pictures[one.picture].style} style."
            for one in scene.things
        ]
        empty = [WHERE[place] for place in range(9) if place not in {one.place for one in scene.things}]
        end = f"The middle of the picture is {'empty' if 'middle' in empty else 'taken'}."
        return asked, " ".join([total, *places, end])


def at(place: str) -> str:
    """Where that is: "at the top left", "in the middle"."""
    return "in the middle" if place == "middle" else f"on the {place}" if place in ("left", "right") else f"at the {place}"
