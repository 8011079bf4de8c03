"""How good the answers are: `python -m mmspec.bench.answers --help`."""

import json
import random
from collections import Counter
from functools import partial
from pathlib import Path

import torch
import tyro
import yaml
from rich.console import Console
from rich.progress import track

from mmspec.bench.provenance import provenance
from mmspec.errors import MmspecError
from mmspec.picture import replace
from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline, chats
from mmspec.placement import dtype_of
from mmspec.training.emoji import build
from mmspec.training.scenes import KINDS, Question, Scene, Studio
from mmspec.zoo import resolve

console = Console(stderr=True)


def normal(text: str) -> str:
    """An answer without case, marks at its end and spaces around it."""
    return " ".join(text.lower().split()).rstrip(".!")


def score(kind: str, said: str, true: str) -> float:
    """1 for the same answer, else 0; of a description, the share of its true sentences that were said."""
    if kind != "describe":
        return float(normal(said) == normal(true))
    wanted, found = ([normal(part) for part in text.split(". ")] for text in (true, said))
    return sum(part in found for part in wanted) / len(wanted)


def questions(studio: Studio, kind: str, count: int, held_out: bool, seed: int) -> list[tuple[Scene, Question]]:
    """Different scenes, each with a question of a kind."""
    chance = random.Random(f"{kind} {seed}")
    found: list[tuple[Scene, Question]] = []
    while len(found) < count:
        scene = studio.scene(chance, held_out)
        found.append((scene, studio.ask(scene, chance, kind)))
    return found


def majority(studio: Studio, kind: str, count: int = 2000) -> str:
    """The answer that training scenes have most often."""
    return Counter(question.turns[-1][1] for _, question in questions(studio, kind, count, False, 1)).most_common(1)[0][0]


def accuracy(
    pipe: ImageTextToTextPipeline, studio: Studio, asked: list[tuple[Scene, Question]], kind: str, seen: bool, batch: int
) -> float:
    """The mean score of greedy answers, with the pictures or without."""
    total, dice = 0.0, random.Random(2)
    for start in range(0, len(asked), batch):
        part, given = asked[start : start + batch], []
        for scene, question in part:
            chat = []
            for number, (first, second) in enumerate(question.turns):
                chat += chats(studio.draw(scene, dice) if seen and not number else None, first)[0]
                if number + 1 < len(question.turns):
                    chat.append({"role": "assistant", "content": second})
            given.append(chat)
        out = pipe(given, temperature=0.0, max_new_tokens=200)
        total += sum(score(kind, said, question.turns[-1][1]) for said, (_, question) in zip(out.texts, part))
    return total / len(asked)


def markdown(results: dict) -> str:
    """The whole report."""
    origin = ", ".join(f"{key} {value}" for key, value in results["provenance"].items())
    rows = [f"| {kind} | " + " | ".join(f"{100 * row[name]:.0f} %" for name in ("seen", "held_out", "blind", "majority")) + " |"
            for kind, row in results["kinds"].items()]  # fmt: skip
    head = "| question | training compositions | held-out compositions | without the picture | commonest answer |\n|---|---|---|---|---|\n"
    return f"# Answers, {results['model']}, {results['questions']} questions a kind, greedy\n\n{origin}\n\n{head}" + "\n".join(rows) + "\n"


def main(
    model: str = "magpie-135",
    work: Path = Path("training"),
    out: Path = Path("docs/results/answers"),
    questions_a_kind: int = 100,
    batch: int = 16,
    dtype: str = "bf16",
) -> None:
    """Ask about scenes whose truth is known: with the picture, without it, and beside the commonest answer. Needs `mmspec[train]`.

    Writes answers.json and answers.md.

    Args:
        work: the folder that `mmspec train --work` used (pictures).
    """
    folder = resolve(model)
    try:
        settings = yaml.safe_load((folder / "recipe.yaml").read_text())["data"]["pictures"]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise MmspecError(f"{folder / 'recipe.yaml'} does not say which pictures the model knows ({error!r}): restore it") from None
    studio = Studio(*build(work / "data", 64, **settings))
    pipe = ImageTextToTextPipeline.from_pretrained(folder, torch_dtype=dtype_of(dtype))
    results: dict = {"model": model, "questions": questions_a_kind, "provenance": provenance("cpu"), "kinds": {}}
    out.mkdir(parents=True, exist_ok=True)
    for kind in track(KINDS, "asking", console=console):
        known, new = (questions(studio, kind, questions_a_kind, held_out, 0) for held_out in (False, True))
        common = majority(studio, kind)
        with torch.inference_mode():
            results["kinds"][kind] = {
                "seen": accuracy(pipe, studio, known, kind, True, batch),
                "held_out": accuracy(pipe, studio, new, kind, True, batch),
                "blind": accuracy(pipe, studio, new, kind, False, batch),
                "majority": sum(score(kind, common, question.turns[-1][1]) for _, question in new) / len(new),
            }
        console.print(kind, results["kinds"][kind])
        for name, text in (("answers.json", json.dumps(results, indent=1) + "\n"), ("answers.md", markdown(results))):
            replace(out / name, partial(Path.write_text, data=text))


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except MmspecError as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        raise SystemExit(2) from None
