"""How good the answers are: `python -m recipes.magpie_135.judge --help`."""

import random
import re
from collections import Counter
from pathlib import Path

import torch
import tyro
import yaml
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch.nn.functional import cross_entropy

from mmspec.bench import report
from mmspec.errors import MmspecError
from mmspec.pipelines.chats import as_chats
from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline
from mmspec.placement import dtype_of
from mmspec.versions import provenance
from mmspec.zoo import resolve
from recipes.emoji_64.data import build
from recipes.magpie_135 import smollm
from recipes.magpie_135.data import KINDS, SIZE, Question, Scene, Studio, many
from recipes.magpie_135.dialogue import encode
from recipes.magpie_135.stages import answered, without_pictures

console = Console(stderr=True)


def normal(text: str) -> str:
    """An answer without case, marks at its end and spaces around it."""
    return " ".join(text.lower().split()).rstrip(".!")


def score(kind: str, said: str, true: str) -> float:
    """1 for the same answer, else 0; of a description, the harmonic mean of how many of its sentences are true and how
    many true ones it has.
    """
    if kind != "describe":
        return float(normal(said) == normal(true))
    found, wanted = ({normal(part) for part in text.split(". ")} for text in (said, true))
    return 2 * len(found & wanted) / (len(found) + len(wanted))


def questions(studio: Studio, kind: str, count: int, held_out: bool, seed: int) -> list[tuple[Scene, Question]]:
    """Different scenes, each with a question of a kind."""
    chance = random.Random(f"{kind} {seed}")
    found: list[tuple[Scene, Question]] = []
    while len(found) < count:
        scene = studio.scene(chance, held_out)
        question = studio.ask(scene, chance, kind)
        if question:
            found.append((scene, question))
    return found


def masked(question: str, answer: str, names: list[str]) -> tuple[str, str, str]:
    """The answer with the name that the question gives taken out, in the singular and the plural, and those two."""
    for name in sorted(names, key=len, reverse=True):
        for form in (many(name), name):
            if re.search(rf"\b{re.escape(form)}\b", question):
                hidden = re.sub(rf"\b{re.escape(many(name))}\b", "{many}", answer)
                return re.sub(rf"\b{re.escape(name)}\b", "{one}", hidden), name, many(name)
    return answer, "", ""


def majority(studio: Studio, kind: str, asked: list[tuple[Scene, Question]], count: int = 1000) -> float:
    """The score of always giving the answer that training scenes have most often, the name in the question put in."""
    names = [*studio.names, "heart"]
    seen = Counter(masked(*question.turns[-1], names)[0] for _, question in questions(studio, kind, count, False, 1))
    common, total = seen.most_common(1)[0][0], 0.0
    for _, question in asked:
        _, one, several = masked(*question.turns[-1], names)
        total += score(kind, common.replace("{one}", one).replace("{many}", several), question.turns[-1][1])
    return total / len(asked)


def accuracy(
    pipe: ImageTextToTextPipeline,
    studio: Studio,
    asked: list[tuple[Scene, Question]],
    kind: str,
    seen: bool,
    batch: int,
) -> float:
    """The mean score of greedy answers; if not `seen`, all pictures are plain grey."""
    total, dice = 0.0, random.Random(2)
    for start in range(0, len(asked), batch):
        part, given = asked[start : start + batch], []
        for scene, question in part:
            picture = studio.draw(scene, dice) if seen else Image.new("RGB", (SIZE, SIZE), "grey")
            chat = []
            for number, (first, second) in enumerate(question.turns):
                chat += as_chats(None if number else picture, first)[0]
                if number + 1 < len(question.turns):
                    chat.append({"role": "assistant", "content": second})
            given.append(chat)
        out = pipe(given, temperature=0.0, max_new_tokens=200)
        total += sum(score(kind, said, question.turns[-1][1]) for said, (_, question) in zip(out.texts, part))
    return total / len(asked)


@torch.inference_mode()
def kept(pipe: ImageTextToTextPipeline, studio: Studio, folder: Path, first: int, count: int = 64) -> dict:
    """What is left of the language model's own abilities, by questions without a picture that were not trained on: nats
    a token of SmolLM2's answers under itself and under the model, and greedy answers of both.
    """
    alone = smollm.alone(folder)
    asked = answered(alone, pipe.processor, without_pictures(studio.names)[first : first + count])
    own, ours, tokens = 0.0, 0.0, 0
    for question, answer, ended in asked:
        row = encode(pipe.processor, [(question, answer)], False, ended)
        ids, wanted = torch.tensor([row.ids]), torch.tensor(row.answer)[1:]
        costs = [
            cross_entropy(model(ids).logits[0, :-1][wanted].float(), ids[0, 1:][wanted], reduction="sum")
            for model in (alone, pipe.transformer)
        ]
        own, ours, tokens = own + float(costs[0]), ours + float(costs[1]), tokens + int(wanted.sum())
    said = []
    for question, _, _ in asked[:6]:
        ids = torch.tensor([encode(pipe.processor, [(question, "")], False).ids])
        now, before = (
            model.generate(ids, do_sample=False, max_new_tokens=60)[0, ids.shape[1] :]
            for model in (pipe.transformer, alone)
        )
        read = pipe.processor.tokenizer.decode
        said.append(
            {
                "question": question,
                "before": read(before, skip_special_tokens=True),
                "now": read(now, skip_special_tokens=True),
            }
        )
    return {"questions": len(asked), "own": own / tokens, "ours": ours / tokens, "said": said}


def markdown(results: dict) -> str:
    """The whole report."""
    origin = ", ".join(f"{key} {value}" for key, value in results["provenance"].items())
    rows = [f"| {kind} | " + " | ".join(f"{100 * row[name]:.0f} %" for name in ("seen", "held_out", "blind", "majority")) + " |"
            for kind, row in results["kinds"].items()]  # fmt: skip
    head = "| question | training compositions | held-out compositions | a grey picture | commonest answer |\n|---|---|---|---|---|\n"
    table = (
        f"# Answers, {results['model']}, {results['questions']} questions a kind, greedy\n\n{origin}\n\n{head}"
        + "\n".join(rows)
        + "\n"
    )
    if not (text := results.get("text")):
        return table
    said = "".join(
        f"- {one['question']}\n  - before: {one['before']!r}\n  - now: {one['now']!r}\n" for one in text["said"]
    )
    return table + (
        f"\n## Without a picture\n\nAnswers of SmolLM2 alone (T = 0.7) to {text['questions']} questions that were not trained on cost {text['own']:.3f} nats a token "
        f"under SmolLM2 alone and {text['ours']:.3f} under this model. Greedy answers:\n\n{said}"
    )


def main(
    model: str = "magpie-135",
    work: Path = Path("training"),
    out: Path = Path("docs/results/answers"),
    questions_a_kind: int = 100,
    batch: int = 16,
    dtype: str = "bf16",
) -> None:
    """Ask about scenes whose truth is known: with the picture, with a grey one, and beside the commonest answer. Needs
    `mmspec[train]`.

    Writes answers.json and answers.md.

    Args:
    work: the folder that `mmspec train --work` used (pictures).
    """
    folder = resolve(model)
    try:
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        settings, learnt = recipe["data"]["pictures"], recipe["target"]["text"]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise MmspecError(
            f"{folder / 'recipe.yaml'} does not say which pictures the model knows ({error!r}): restore it"
        ) from None
    studio = Studio(*build(work / "data", 64, **settings))
    pipe = ImageTextToTextPipeline.from_pretrained(folder, torch_dtype=dtype_of(dtype))
    results: dict = {"model": model, "questions": questions_a_kind, "provenance": provenance("cpu"), "kinds": {}}
    out.mkdir(parents=True, exist_ok=True)
    for kind in track(KINDS, "asking", console=console):
        known, new = (questions(studio, kind, questions_a_kind, held_out, 0) for held_out in (False, True))
        with torch.inference_mode():
            results["kinds"][kind] = {
                "seen": accuracy(pipe, studio, known, kind, True, batch),
                "held_out": accuracy(pipe, studio, new, kind, True, batch),
                "blind": accuracy(pipe, studio, new, kind, False, batch),
                "majority": majority(studio, kind, new),
            }
        console.print(kind, results["kinds"][kind])
        report.save(out, "answers", results, markdown(results))
    results["text"] = kept(pipe, studio, work / "data", learnt)
    report.save(out, "answers", results, markdown(results))


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except MmspecError as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        raise SystemExit(2) from None
