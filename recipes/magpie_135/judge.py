"""How good the answers are: `python -m recipes.magpie_135.judge --help`."""

import random
import re
from collections import Counter
from pathlib import Path

import torch
import yaml
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch.nn.functional import cross_entropy

from mmspec.bench import report
from mmspec.cli.common import run_function
from mmspec.errors import MmspecError
from mmspec.pipelines.chats import as_chats
from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline
from mmspec.placement import dtype_of
from mmspec.versions import provenance
from mmspec.zoo import resolve
from recipes.emoji_64.data import build
from recipes.magpie_135 import smollm
from recipes.magpie_135.dialogue import encode
from recipes.magpie_135.questions import KINDS, Question, Studio, plural
from recipes.magpie_135.scenes import SIZE, Scene
from recipes.magpie_135.text import answer, text_questions

console = Console(stderr=True)


def normalised(text: str) -> str:
    """An answer without case, marks at its end and spaces around it."""
    return " ".join(text.lower().split()).rstrip(".!")


def score(kind: str, answer: str, truth: str) -> float:
    """1 for the true answer, else 0; for a description, the F1 score of its sentences."""
    if kind != "describe":
        return float(normalised(answer) == normalised(truth))
    sentences, true = ({normalised(part) for part in text.split(". ")} for text in (answer, truth))
    return 2 * len(sentences & true) / (len(sentences) + len(true))


def questions(studio: Studio, kind: str, count: int, held_out: bool, seed: int) -> list[tuple[Scene, Question]]:
    """Different scenes, each with a question of a kind."""
    rng = random.Random(f"{kind} {seed}")
    pairs: list[tuple[Scene, Question]] = []
    while len(pairs) < count:
        scene = studio.scene(rng, held_out)
        question = studio.ask(scene, rng, kind)
        if question:
            pairs.append((scene, question))
    return pairs


def masked(question: str, answer: str, names: list[str]) -> tuple[str, str, str]:
    """The answer as a template, with "{one}" and "{many}" for the name that the question gives, and that name in
    singular and plural."""
    for name in sorted(names, key=len, reverse=True):
        for form in (plural(name), name):
            if re.search(rf"\b{re.escape(form)}\b", question):
                template = re.sub(rf"\b{re.escape(plural(name))}\b", "{many}", answer)
                return re.sub(rf"\b{re.escape(name)}\b", "{one}", template), name, plural(name)
    return answer, "", ""


def majority(studio: Studio, kind: str, asked: list[tuple[Scene, Question]], count: int = 1000) -> float:
    """The mean score of always giving the commonest answer to training scenes, with the name in the question put in."""
    names = [*studio.names, "heart"]
    answers = Counter(masked(*question.turns[-1], names)[0] for _, question in questions(studio, kind, count, False, 1))
    common, total = answers.most_common(1)[0][0], 0.0
    for _, question in asked:
        _, name, several = masked(*question.turns[-1], names)
        total += score(kind, common.replace("{one}", name).replace("{many}", several), question.turns[-1][1])
    return total / len(asked)


def accuracy(
    pipe: ImageTextToTextPipeline,
    studio: Studio,
    asked: list[tuple[Scene, Question]],
    kind: str,
    pictures: bool,
    batch: int,
) -> float:
    """The mean score of greedy answers; without `pictures`, all scenes are plain grey."""
    total, rng = 0.0, random.Random(2)
    for start in range(0, len(asked), batch):
        part, prompts = asked[start : start + batch], []
        for scene, question in part:
            picture = studio.draw(scene, rng) if pictures else Image.new("RGB", (SIZE, SIZE), "grey")
            messages = []
            for number, (text, reply) in enumerate(question.turns):
                messages += as_chats(None if number else picture, text)[0]
                if number + 1 < len(question.turns):
                    messages.append({"role": "assistant", "content": reply})
            prompts.append(messages)
        output = pipe(prompts, temperature=0.0, max_new_tokens=200)
        total += sum(score(kind, text, question.turns[-1][1]) for text, (_, question) in zip(output.texts, part))
    return total / len(asked)


@torch.inference_mode()
def text_retention(
    pipe: ImageTextToTextPipeline, studio: Studio, folder: Path, first: int, count: int = 64
) -> dict[str, object]:
    """What is left of the language model's own abilities, by questions without a picture that were not trained on: nats
    a token of SmolLM2's answers under itself and under the model, and greedy answers of both."""
    language = smollm.load(folder)
    chats = answer(language, pipe.processor, text_questions(studio.names)[first : first + count])
    own, ours, tokens = 0.0, 0.0, 0
    for question, reply, ended in chats:
        chat = encode(pipe.processor, [(question, reply)], False, ended)
        ids, learnt = torch.tensor([chat.ids]), torch.tensor(chat.answer)[1:]
        costs = [
            cross_entropy(model(ids).logits[0, :-1][learnt].float(), ids[0, 1:][learnt], reduction="sum")
            for model in (language, pipe.transformer)
        ]
        own, ours, tokens = own + float(costs[0]), ours + float(costs[1]), tokens + int(learnt.sum())
    samples = []
    for question, _, _ in chats[:6]:
        ids = torch.tensor([encode(pipe.processor, [(question, "")], False).ids])
        now, before = (
            model.generate(ids, do_sample=False, max_new_tokens=60)[0, ids.shape[1] :]
            for model in (pipe.transformer, language)
        )
        decode = pipe.processor.tokenizer.decode
        samples.append(
            {
                "question": question,
                "before": decode(before, skip_special_tokens=True),
                "now": decode(now, skip_special_tokens=True),
            }
        )
    return {"questions": len(chats), "own": own / tokens, "ours": ours / tokens, "said": samples}


def markdown(results: dict) -> str:
    """The whole report."""
    origin = ", ".join(f"{key} {value}" for key, value in results["provenance"].items())
    columns = ("seen", "held_out", "blind", "majority")
    rows = [
        f"| {kind} | " + " | ".join(f"{100 * row[name]:.0f} %" for name in columns) + " |"
        for kind, row in results["kinds"].items()
    ]
    table = "\n".join(
        (
            f"# Answers, {results['model']}, {results['questions']} questions a kind, greedy",
            "",
            origin,
            "",
            "| question | training compositions | held-out compositions | a grey picture | commonest answer |",
            "|---|---|---|---|---|",
            *rows,
            "",
        )
    )
    if not (text := results.get("text")):
        return table
    samples = "".join(
        f"- {sample['question']}\n  - before: {sample['before']!r}\n  - now: {sample['now']!r}\n"
        for sample in text["said"]
    )
    return table + (
        f"\n## Without a picture\n\nAnswers of SmolLM2 alone (T = 0.7) to {text['questions']} questions that were not "
        f"trained on cost {text['own']:.3f} nats a token under SmolLM2 alone and {text['ours']:.3f} under this model. "
        f"Greedy answers:\n\n{samples}"
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
        trained, new = (questions(studio, kind, questions_a_kind, held_out, 0) for held_out in (False, True))
        with torch.inference_mode():
            results["kinds"][kind] = {
                "seen": accuracy(pipe, studio, trained, kind, True, batch),
                "held_out": accuracy(pipe, studio, new, kind, True, batch),
                "blind": accuracy(pipe, studio, new, kind, False, batch),
                "majority": majority(studio, kind, new),
            }
        console.print(kind, results["kinds"][kind])
        report.save(out, "answers", results, markdown(results))
    results["text"] = text_retention(pipe, studio, work / "data", learnt)
    report.save(out, "answers", results, markdown(results))


if __name__ == "__main__":
    run_function(main)
