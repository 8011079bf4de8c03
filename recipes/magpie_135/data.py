"""Scenes to talk about: emoji placed on a plain background, and questions whose answers are known by construction."""

import hashlib
import io
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from recipes.emoji_64.data import BACKGROUNDS, Picture

SIZE = 128
Pair = tuple[str, str]
WHERE = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
COLOURS = set("black blue brown green grey orange pink purple red white yellow".split())
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
# Kinds of questions, and how often each is asked.
KINDS = {
    "what": 5,
    "count": 6,
    "background": 3,
    "colour": 2,
    "where": 5,
    "place": 4,
    "relation": 4,
    "style": 2,
    "presence": 5,
    "describe": 3,
    "follow-up": 4,
}

# Names that no number goes with, or that are no thing to see.
UNCOUNTED = set(
    "bacon badminton beans blueberries bowling bread broccoli butter camping cherries chopsticks collision construction cooking custard dizzy "
    "fireworks flatbread fog foggy garlic grapes houses ice lacrosse luggage mate oden pancakes peanuts popcorn sake salt skis spaghetti "
    "sparkles sushi tennis wedding wood yarn zzz".split()
)


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
    left, top = (
        round(SIZE * (1 + 2 * at) / 6) + (chance.randrange(-3, 4) if chance else 0) - thing.width // 2
        for at in (column, row)
    )
    return max(0, min(SIZE - thing.width, left)), max(0, min(SIZE - thing.width, top))


class Studio:
    """Makes scenes of a picture set (`rgba[picture]`, uint8 `size size 4`) and asks about them."""

    def __init__(self, rgba: np.ndarray, pictures: list[Picture]):
        self.rgba, self.pictures = rgba, pictures
        self.by_name: dict[str, list[int]] = {}
        for number, picture in enumerate(pictures):
            if picture.name not in UNCOUNTED:
                self.by_name.setdefault(picture.name, []).append(number)
        self.names = sorted(self.by_name)

    def held_out(self, scene: Scene) -> bool:
        """One composition in twelve is never trained on: which names (one name: and style) on which background."""
        names = sorted({self.name(one) for one in scene.things})
        style = self.style(scene.things[0]) if len(scene.things) == 1 else ""
        digest = hashlib.sha256("|".join([*names, style, scene.background]).encode()).digest()
        return digest[0] % 12 == 0

    def scene(self, chance: random.Random, held_out: bool) -> Scene:
        """One thing, several of a kind, or several kinds."""
        while True:
            background = chance.choice(list(BACKGROUNDS))
            form = chance.random()
            if form < 0.3:
                thing = chance.choice(self.by_name[chance.choice(self.names)])
                things = [Thing(thing, 4, chance.randrange(64, SIZE + 1))]
            else:
                count = chance.randrange(2, 7 if form < 0.55 else 6)
                names = (
                    [chance.choice(self.names)] * count
                    if form < 0.55
                    else [chance.choice(self.names) for _ in range(count)]
                )
                if form > 0.8:
                    names[1] = names[0]
                places = sorted(chance.sample(range(9), count))
                chance.shuffle(names)
                things = [
                    Thing(chance.choice(self.by_name[name]), place, chance.randrange(32, 43))
                    for name, place in zip(names, places)
                ]
            found = Scene(tuple(things), background)
            if self.held_out(found) == held_out:
                return found

    def draw(self, scene: Scene, chance: random.Random | None = None, worn: float = 0.0) -> Image.Image:
        """The picture, `SIZE` pixels square. `chance` shifts every thing by a few pixels; a share of pictures is
        `worn`: halved and enlarged, or saved as a JPEG of little quality.
        """
        page = Image.new("RGB", (SIZE, SIZE), BACKGROUNDS[scene.background])
        for thing in scene.things:
            image = Image.fromarray(self.rgba[thing.picture]).resize(
                (thing.width, thing.width), Image.Resampling.BICUBIC
            )
            page.paste(image, corner(thing, chance), image)
        if chance and chance.random() < worn:
            if chance.random() < 0.5:
                return page.resize((SIZE // 2, SIZE // 2), Image.Resampling.BICUBIC).resize(
                    (SIZE, SIZE), Image.Resampling.BICUBIC
                )
            file = io.BytesIO()
            page.save(file, "JPEG", quality=chance.randrange(15, 70))
            return Image.open(file).convert("RGB")
        return page

    def name(self, thing: Thing) -> str:
        return self.pictures[thing.picture].name

    def style(self, thing: Thing) -> str:
        return self.pictures[thing.picture].style

    def question(self, scene: Scene, chance: random.Random) -> Question:
        """A question of any kind that the scene allows."""
        while True:
            found = self.ask(scene, chance, chance.choices(list(KINDS), list(KINDS.values()))[0])
            if found:
                return found

    def ask(self, scene: Scene, chance: random.Random, kind: str) -> Question | None:
        """A question of a kind; None if the scene does not allow it."""
        if kind == "follow-up":
            turns = self._follow_up(scene, chance)
        else:
            pair = getattr(self, f"_{kind}")(scene, chance)
            turns = pair and (pair,)
        return Question(kind, turns) if turns else None

    def talk(self, scene: Scene, chance: random.Random, most: int) -> list[tuple[str, str]]:
        """One to `most` different questions and their answers, as one chat."""
        turns: dict[str, str] = {}
        for _ in range(chance.randrange(1, most + 1)):
            turns |= dict(self.question(scene, chance).turns)
        return list(turns.items())

    def _counts(self, scene: Scene) -> Counter[str]:
        return Counter(map(self.name, scene.things))

    def _alone(self, scene: Scene) -> list[Thing]:
        """Things whose name no other thing has."""
        counts = self._counts(scene)
        return [one for one in scene.things if counts[self.name(one)] == 1]

    def _what(self, scene: Scene, chance: random.Random) -> Pair | None:
        found = listed(
            [some(name) if count == 1 else counted(name, count) for name, count in self._counts(scene).items()]
        )
        if len(scene.things) == 1 and chance.random() < 0.4:
            return "What is this?", f"This is {found}."
        return chance.choice(
            ("What is in the picture?", "What do you see?", "What does the picture show?")
        ), f"The picture shows {found}."

    def _count(self, scene: Scene, chance: random.Random) -> Pair | None:
        counts: Counter[str] = Counter(self._counts(scene))
        for name, count in list(counts.items()):
            if " " in name:  # a red heart is a heart
                counts[name.split()[-1]] += count
        amount = 0 if chance.random() < 0.15 else chance.choice(sorted({*counts.values()}))
        name = chance.choice(
            [name for name in self.names if name not in counts]
            if not amount
            else sorted(n for n in counts if counts[n] == amount)
        )
        things = many(name)
        asked = chance.choice(
            (
                f"How many {things} are there?",
                f"How many {things} do you see?",
                f"How many {things}?",
                f"Count the {things}.",
            )
        )
        return asked, f"There {'is' if amount == 1 else 'are'} {counted(name, amount)}."

    def _background(self, scene: Scene, chance: random.Random) -> Pair | None:
        asked = (
            "What colour is the background?",
            "Which colour is the background?",
            "What is the colour of the background?",
        )
        return chance.choice(asked), f"The background is {scene.background}."

    def _colour(self, scene: Scene, chance: random.Random) -> Pair | None:
        known = [self.name(one).rpartition(" ") for one in self._alone(scene)]
        known = [parts for parts in known if parts[0].split() and parts[0].split()[-1] in COLOURS]
        if not known or len({parts[2] for parts in known}) < len(known):
            return None
        colour, _, name = chance.choice(known)
        return f"What colour is the {name}?", f"The {name} is {colour}."

    def _where(self, scene: Scene, chance: random.Random) -> Pair | None:
        if len(scene.things) == 1 and chance.random() < 0.7:
            return None
        name = self.name(chance.choice(scene.things))
        places = [WHERE[one.place] for one in scene.things if self.name(one) == name]
        if len(places) == 1:
            return chance.choice(
                (f"Where is the {name}?", f"In which part of the picture is the {name}?")
            ), f"The {name} is {at(places[0])}."
        return f"Where are the {many(name)}?", f"The {many(name)} are {listed([at(place) for place in places])}."

    def _place(self, scene: Scene, chance: random.Random) -> Pair | None:
        if len(scene.things) == 1:
            return None
        things = {one.place: one for one in scene.things}
        place = chance.choice(sorted(things)) if chance.random() < 0.8 else chance.randrange(9)
        asked = chance.choice((f"What is {at(WHERE[place])}?", f"What do you see {at(WHERE[place])}?"))
        return asked, f"There is {some(self.name(things[place])) if place in things else 'nothing'} {at(WHERE[place])}."

    def _relation(self, scene: Scene, chance: random.Random) -> Pair | None:
        alone = self._alone(scene)
        if len(alone) < 2:
            return None
        one, other = chance.sample(alone, 2)
        (row, column), (below, right) = divmod(one.place, 3), divmod(other.place, 3)
        ways = [way for way, differs in (("left of", column != right), ("above", row != below)) if differs]
        way = chance.choice(ways)
        true = column < right if way == "left of" else row < below
        if chance.random() < 0.5:
            way, true = {"left of": "right of", "above": "below"}[way], not true
        first, second = self.name(one), self.name(other)
        return (
            f"Is the {first} {way} the {second}?",
            f"{'Yes' if true else 'No'}, the {first} is {'' if true else 'not '}{way} the {second}.",
        )

    def _style(self, scene: Scene, chance: random.Random) -> Pair | None:
        styles: dict[str, set[str]] = {}
        for one in scene.things:
            styles.setdefault(self.name(one), set()).add(self.style(one))
        known = sorted(name for name, found in styles.items() if len(found) == 1)
        if not known:
            return None
        name = chance.choice(known)
        single = self._counts(scene)[name] == 1
        asked = f"In which style {'is' if single else 'are'} the {name if single else many(name)} drawn?"
        return asked, f"{'It is' if single else 'They are'} drawn in the {min(styles[name])} style."

    def _presence(self, scene: Scene, chance: random.Random) -> Pair | None:
        counts = self._counts(scene)
        yes = chance.random() < 0.5
        name = (
            chance.choice(sorted(counts)) if yes else chance.choice([name for name in self.names if name not in counts])
        )
        asked = chance.choice(
            (f"Is there {some(name)} in the picture?", f"Do you see {some(name)}?", f"Is there {some(name)}?")
        )
        if not yes:
            return asked, f"No, there is no {name}."
        return asked, f"Yes, there is {some(name)}." if counts[
            name
        ] == 1 else f"Yes, there are {counted(name, counts[name])}."

    def _describe(self, scene: Scene, chance: random.Random) -> Pair | None:
        asked = (
            "Describe the picture.",
            "Describe the picture in detail.",
            "Tell me everything about the picture.",
            "What can you say about this picture?",
        )
        first = scene.things[0]
        if len(scene.things) == 1:
            name, size = (
                self.name(first),
                "fills most of the picture" if first.width > 96 else "leaves a wide border around it",
            )
            return chance.choice(asked), (
                f"The picture shows {some(name)} on {some(scene.background)} background. The {name} is in the middle and {size}. "
                f"It is drawn in the {self.style(first)} style. There is nothing else in the picture."
            )
        parts = listed([counted(name, count) for name, count in self._counts(scene).items()])
        told = [
            f"The picture shows {NUMBERS[len(scene.things)]} things on {some(scene.background)} background: {parts}."
        ]
        for one in scene.things:
            place = at(WHERE[one.place])
            told.append(
                f"{place[0].upper()}{place[1:]} there is {some(self.name(one))}, drawn in the {self.style(one)} style."
            )
        told.append(f"The middle of the picture is {'taken' if 4 in {one.place for one in scene.things} else 'empty'}.")
        return chance.choice(asked), " ".join(told)

    def _follow_up(self, scene: Scene, chance: random.Random) -> tuple[Pair, ...] | None:
        """Two turns, the second of which cannot be understood without the first."""
        counts, alone = self._counts(scene), self._alone(scene)
        form = chance.randrange(3)
        if form == 0:
            first = self._what(scene, chance)
            total = len(scene.things)
            return first and (
                first,
                ("How many things is that?", f"That is {NUMBERS[total]} thing{'' if total == 1 else 's'}."),
            )
        if form == 1:
            if not alone or len(scene.things) == 1:
                return None
            thing = chance.choice(alone)
            name = self.name(thing)
            return (f"Is there {some(name)}?", f"Yes, there is {some(name)}."), (
                "Where is it?",
                f"It is {at(WHERE[thing.place])}.",
            )
        one, other = chance.choice(sorted(counts)), chance.choice([*counts, *chance.sample(self.names, len(counts))])
        if one == other:
            return None
        pairs = [
            (name, f"There {'is' if counts[name] == 1 else 'are'} {counted(name, counts[name])}.")
            for name in (one, other)
        ]
        return (f"How many {many(one)} are there?", pairs[0][1]), (f"And how many {many(other)}?", pairs[1][1])


def at(place: str) -> str:
    """Where that is: "at the top left", "in the middle"."""
    return (
        "in the middle" if place == "middle" else f"on the {place}" if place in ("left", "right") else f"at the {place}"
    )
