"""Trains every drafter of `mmspec bench drafters` on the bundled models, on equal data and for about equal time each:

python -m recipes.drafters --out trained --minutes 5

What is there already is left, so that a run that was stopped goes on.
"""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.console import Console

from mmspec import zoo
from mmspec.bench.drafters import FIELDS, MEASURED, Field
from mmspec.bench.vlm import questions
from mmspec.errors import MmspecError, unknown
from recipes.magpie_135.text import ABOUT_PLACES, AT_LARGE, PLACES, WORDS

# A drafter's name, its kind, and options of `mmspec train`.
DRAFTERS: dict[str, tuple[str, ...]] = {
    "medusa 5": ("medusa",),
    "medusa with KOALA": ("medusa", "--option", "layers=2", "discriminator=64"),
    "medusa with a table": ("medusa", "--option", "rank=64"),
    "hydra": ("hydra",),
    "hydra++ heads": ("hydra", "--option", "layers=4"),
    "amphista": ("amphista",),
    "falcon": ("falcon",),
    "redrafter": ("redrafter",),
    "hawk-path 1": ("hawk-path",),
    "msd 1": ("msd",),
    "dspark": ("dspark",),
}

# Kinds that draft without guidance alone, and so are not for pictures.
UNGUIDED = ("dspark",)

DESCRIBE = ("Describe this picture.", "What can you see here?", "Tell me about this image.")

# Prompts of each field, those that choose the best checkpoint and those for the report included.
PROMPTS = 200

console = Console(stderr=True)


def prompts_of(field: Field, folder: Path) -> list[dict]:
    """What a field's drafters learn from: none of the prompts that the benchmark takes."""
    rng = random.Random(0)
    measured = field.rows(folder, MEASURED)
    texts = {row["prompt"] for row in measured}
    if field.name == "text":
        words = sorted({row["prompt"].split(",")[0].split(" ", 1)[-1] for row in zoo.prompts(zoo.resolve("emoji-64"))})
        asked = [form.format(word) for form in WORDS for word in words]
        asked += [*AT_LARGE, *(form.format(place) for form in ABOUT_PLACES for place in PLACES)]
        return [{"prompt": prompt} for prompt in rng.sample(sorted(asked), PROMPTS)]
    rows = [row for row in questions(folder) if row["prompt"] not in texts]
    if field.name == "descriptions":
        shown = {row["image"] for row in measured}
        pictures = sorted({row["image"] for row in questions(folder)} - shown)
        rows = [{"prompt": prompt, "image": picture} for picture in pictures for prompt in DESCRIBE]
    rng.shuffle(rows)
    return [{key: row[key] for key in ("prompt", "voice", "image") if key in row} for row in rows[:PROMPTS]]


def train(out: Path, minutes: float, fields: Sequence[str], names: Sequence[str]) -> None:
    """Train what is missing, one after the other."""
    for field in (field for field in FIELDS if field.name in fields):
        folder, own = zoo.resolve(field.model), out / field.name
        own.mkdir(parents=True, exist_ok=True)
        file = own / "prompts.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in prompts_of(field, folder)))
        for name in names:
            kind, *options = DRAFTERS[name]
            if (own / name / "report.json").is_file() or (field.name == "pictures" and kind in UNGUIDED):
                continue
            console.rule(f"{field.name}, {name}")
            command = [sys.executable, "-m", "mmspec", "train", kind, "--model", field.model, "--prompts", str(file)]
            command += ["--out", str(own / name), "--work", str(own / "work"), "--minutes", str(minutes), *options]
            if field.name == "speech":
                command += ["--max-new-tokens", "384"]
            if subprocess.run(command).returncode:
                raise MmspecError(f"{name} was not trained for {field.name}: see above")


def main(
    out: Path,
    minutes: float = 5.0,
    fields: tuple[str, ...] = tuple(field.name for field in FIELDS),
    drafters: tuple[str, ...] = tuple(DRAFTERS),
) -> None:
    """Train the drafters of `mmspec bench drafters`.

    Args:
        out: Folder of all of them, with answers and checkpoints; `mmspec bench drafters --trained` takes it.
        minutes: Minutes of training steps for each.
        fields: Of pictures, speech, descriptions and text.
        drafters: Names of those that are trained.
    """
    for given, known in ((fields, [field.name for field in FIELDS]), (drafters, list(DRAFTERS))):
        for name in given:
            if name not in known:
                raise unknown("field" if given is fields else "drafter", name, known)
    train(out, minutes, fields, drafters)


if __name__ == "__main__":
    tyro.cli(main)
