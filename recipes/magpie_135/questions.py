"""Questions about scenes, whose answers are known by construction."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from recipes.magpie_135.scenes import Scene, SceneMaker, Thing

Pair = tuple[str, str]
CELL_NAMES = (
    *("top left", "top", "top right"),
    *("left", "middle", "right"),
    *("bottom left", "bottom", "bottom right"),
)
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


@dataclass(frozen=True, slots=True)
class Question:
    """A chat about a scene: questions and answers in turn, of one kind."""

    kind: str
    turns: tuple[Pair, ...]


@cache
def _english():
    import inflect

    return inflect.engine()


def plural(name: str) -> str:
    return _english().plural_noun(name)


def with_article(name: str) -> str:
    """A name with its indefinite article: "a cat", "an apple"."""
    return _english().a(name)


def counted(name: str, count: int) -> str:
    """A name with a number: "no cats", "one cat", "two cats"."""
    return f"{NUMBERS[count]} {name if count == 1 else plural(name)}"


def enumeration(parts: Sequence[str]) -> str:
    """Parts as a phrase: "a cat, a dog and an apple"."""
    return _english().join(list(parts), final_sep="")


def at(cell: int) -> str:
    """The phrase for a cell: "at the top left", "in the middle", "on the right"."""
    name = CELL_NAMES[cell]
    return "in the middle" if name == "middle" else f"on the {name}" if name in ("left", "right") else f"at the {name}"


class Studio(SceneMaker):
    """Makes scenes and asks about them."""

    def question(self, scene: Scene, rng: random.Random) -> Question:
        """A question of any kind that the scene allows."""
        while True:
            question = self.ask(scene, rng, rng.choices(list(KINDS), list(KINDS.values()))[0])
            if question:
                return question

    def ask(self, scene: Scene, rng: random.Random, kind: str) -> Question | None:
        """A question of a kind; None if the scene does not allow it."""
        if kind == "follow-up":
            turns = self._follow_up(scene, rng)
        else:
            pairs = {
                "what": self._what,
                "count": self._count,
                "background": self._background,
                "colour": self._colour,
                "where": self._where,
                "place": self._place,
                "relation": self._relation,
                "style": self._style,
                "presence": self._presence,
                "describe": self._describe,
            }
            pair = pairs[kind](scene, rng)
            turns = (pair,) if pair else None
        return Question(kind, turns) if turns else None

    def talk(self, scene: Scene, rng: random.Random, most: int) -> list[Pair]:
        """One to `most` different questions and their answers, as one chat."""
        turns: dict[str, str] = {}
        for _ in range(rng.randrange(1, most + 1)):
            turns |= dict(self.question(scene, rng).turns)
        return list(turns.items())

    def _counts(self, scene: Scene) -> Counter[str]:
        return Counter(map(self.name, scene.things))

    def _alone(self, scene: Scene) -> list[Thing]:
        """Things whose name no other thing has."""
        counts = self._counts(scene)
        return [thing for thing in scene.things if counts[self.name(thing)] == 1]

    def _what(self, scene: Scene, rng: random.Random) -> Pair | None:
        contents = enumeration(
            [with_article(name) if count == 1 else counted(name, count) for name, count in self._counts(scene).items()]
        )
        if len(scene.things) == 1 and rng.random() < 0.4:
            return "What is this?", f"This is {contents}."
        questions = ("What is in the picture?", "What do you see?", "What does the picture show?")
        return rng.choice(questions), f"The picture shows {contents}."

    def _count(self, scene: Scene, rng: random.Random) -> Pair | None:
        counts: Counter[str] = Counter(self._counts(scene))
        for name, count in list(counts.items()):
            if " " in name:  # a red heart is a heart
                counts[name.split()[-1]] += count
        amount = 0 if rng.random() < 0.15 else rng.choice(sorted({*counts.values()}))
        name = rng.choice(
            [name for name in self.names if name not in counts]
            if not amount
            else sorted(n for n in counts if counts[n] == amount)
        )
        things = plural(name)
        questions = (
            f"How many {things} are there?",
            f"How many {things} do you see?",
            f"How many {things}?",
            f"Count the {things}.",
        )
        return rng.choice(questions), f"There {'is' if amount == 1 else 'are'} {counted(name, amount)}."

    def _background(self, scene: Scene, rng: random.Random) -> Pair | None:
        questions = (
            "What colour is the background?",
            "Which colour is the background?",
            "What is the colour of the background?",
        )
        return rng.choice(questions), f"The background is {scene.background}."

    def _colour(self, scene: Scene, rng: random.Random) -> Pair | None:
        parts = [self.name(thing).rpartition(" ") for thing in self._alone(scene)]
        coloured = [part for part in parts if part[0].split() and part[0].split()[-1] in COLOURS]
        if not coloured or len({part[2] for part in coloured}) < len(coloured):
            return None
        colour, _, name = rng.choice(coloured)
        return f"What colour is the {name}?", f"The {name} is {colour}."

    def _where(self, scene: Scene, rng: random.Random) -> Pair | None:
        if len(scene.things) == 1 and rng.random() < 0.7:
            return None
        name = self.name(rng.choice(scene.things))
        cells = [thing.cell for thing in scene.things if self.name(thing) == name]
        if len(cells) == 1:
            questions = (f"Where is the {name}?", f"In which part of the picture is the {name}?")
            return rng.choice(questions), f"The {name} is {at(cells[0])}."
        names = plural(name)
        return f"Where are the {names}?", f"The {names} are {enumeration([at(cell) for cell in cells])}."

    def _place(self, scene: Scene, rng: random.Random) -> Pair | None:
        if len(scene.things) == 1:
            return None
        things = {thing.cell: thing for thing in scene.things}
        cell = rng.choice(sorted(things)) if rng.random() < 0.8 else rng.randrange(9)
        question = rng.choice((f"What is {at(cell)}?", f"What do you see {at(cell)}?"))
        name = with_article(self.name(things[cell])) if cell in things else "nothing"
        return question, f"There is {name} {at(cell)}."

    def _relation(self, scene: Scene, rng: random.Random) -> Pair | None:
        alone = self._alone(scene)
        if len(alone) < 2:
            return None
        first, second = rng.sample(alone, 2)
        (row, column), (other_row, other_column) = divmod(first.cell, 3), divmod(second.cell, 3)
        differs = (("left of", column != other_column), ("above", row != other_row))
        relation = rng.choice([name for name, differ in differs if differ])
        true = column < other_column if relation == "left of" else row < other_row
        if rng.random() < 0.5:
            relation, true = {"left of": "right of", "above": "below"}[relation], not true
        name, other = self.name(first), self.name(second)
        return (
            f"Is the {name} {relation} the {other}?",
            f"{'Yes' if true else 'No'}, the {name} is {'' if true else 'not '}{relation} the {other}.",
        )

    def _style(self, scene: Scene, rng: random.Random) -> Pair | None:
        styles: dict[str, set[str]] = {}
        for thing in scene.things:
            styles.setdefault(self.name(thing), set()).add(self.style(thing))
        names = sorted(name for name, drawn in styles.items() if len(drawn) == 1)
        if not names:
            return None
        name = rng.choice(names)
        single = self._counts(scene)[name] == 1
        question = f"In which style {'is' if single else 'are'} the {name if single else plural(name)} drawn?"
        return question, f"{'It is' if single else 'They are'} drawn in the {min(styles[name])} style."

    def _presence(self, scene: Scene, rng: random.Random) -> Pair | None:
        counts = self._counts(scene)
        present = rng.random() < 0.5
        name = rng.choice(sorted(counts) if present else [name for name in self.names if name not in counts])
        thing = with_article(name)
        question = rng.choice((f"Is there {thing} in the picture?", f"Do you see {thing}?", f"Is there {thing}?"))
        if not present:
            return question, f"No, there is no {name}."
        many = f"Yes, there are {counted(name, counts[name])}."
        return question, f"Yes, there is {thing}." if counts[name] == 1 else many

    def _describe(self, scene: Scene, rng: random.Random) -> Pair | None:
        questions = (
            "Describe the picture.",
            "Describe the picture in detail.",
            "Tell me everything about the picture.",
            "What can you say about this picture?",
        )
        first, background = scene.things[0], with_article(scene.background)
        if len(scene.things) == 1:
            name = self.name(first)
            size = "fills most of the picture" if first.width > 96 else "leaves a wide border around it"
            return rng.choice(questions), (
                f"The picture shows {with_article(name)} on {background} background. "
                f"The {name} is in the middle and {size}. It is drawn in the {self.style(first)} style. "
                "There is nothing else in the picture."
            )
        parts = enumeration([counted(name, count) for name, count in self._counts(scene).items()])
        sentences = [f"The picture shows {NUMBERS[len(scene.things)]} things on {background} background: {parts}."]
        for thing in scene.things:
            cell, name = at(thing.cell), with_article(self.name(thing))
            sentences.append(f"{cell[0].upper()}{cell[1:]} there is {name}, drawn in the {self.style(thing)} style.")
        taken = 4 in {thing.cell for thing in scene.things}
        sentences.append(f"The middle of the picture is {'taken' if taken else 'empty'}.")
        return rng.choice(questions), " ".join(sentences)

    def _follow_up(self, scene: Scene, rng: random.Random) -> tuple[Pair, ...] | None:
        """Two turns, the second of which cannot be understood without the first."""
        counts, alone = self._counts(scene), self._alone(scene)
        form = rng.randrange(3)
        if form == 0:
            first, total = self._what(scene, rng), len(scene.things)
            things = f"{NUMBERS[total]} thing{'' if total == 1 else 's'}"
            return first and (first, ("How many things is that?", f"That is {things}."))
        if form == 1:
            if not alone or len(scene.things) == 1:
                return None
            thing = rng.choice(alone)
            name = with_article(self.name(thing))
            return (f"Is there {name}?", f"Yes, there is {name}."), ("Where is it?", f"It is {at(thing.cell)}.")
        name, other = rng.choice(sorted(counts)), rng.choice([*counts, *rng.sample(self.names, len(counts))])
        if name == other:
            return None
        answers = [f"There {'is' if counts[n] == 1 else 'are'} {counted(n, counts[n])}." for n in (name, other)]
        return (f"How many {plural(name)} are there?", answers[0]), (f"And how many {plural(other)}?", answers[1])
