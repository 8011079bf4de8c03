"""The stages of an image recipe: pictures, tokenizer, target, drafters."""

import json
import random
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from mmspec.errors import MmspecError
from mmspec.files import write_atomically
from mmspec.pipelines.base import Pipeline
from mmspec.train.recipe import check_drafters, train_drafters
from mmspec.train.run import Run
from mmspec.zoo import VOCABULARY
from recipes.emoji_64.data import BACKGROUNDS, CATEGORIES, PACKAGES, Picture, build, caption
from recipes.emoji_64.target import encode_pictures, train_target, train_text_tokenizer
from recipes.emoji_64.tokenizer import learn_codebook, train_tokenizer

console = Console(stderr=True)
EVERY = {"words": 99, "categories": CATEGORIES}
# The form of a prompt, and its words beside the names (`data.caption`).
FORM = {
    "prompt": "a NAME[ on a BACKGROUND background][, STYLE style]",
    "words": ["a", "an", "on", "background", "style"],
}
GUIDANCES = (1.0, 2.0, 3.0)


def pictures(run: Run, held_out: bool, **changes: object) -> tuple[np.ndarray, list[Picture]]:
    """The pictures that are held out, or those that are not, with `changes` to the data settings, such as `EVERY`."""
    rgba, all_pictures = build(run.work / "data", **run.recipe["data"] | changes)
    index = [i for i, picture in enumerate(all_pictures) if picture.held_out == held_out]
    return rgba[index], [all_pictures[i] for i in index]


def data(run: Run) -> None:
    """Fetch the art, and write the prompts of all pictures and the words that they are made of."""
    all_pictures = build(run.work / "data", **run.recipe["data"])[1]
    run.out.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"prompt": caption(p.name, p.style), "held_out": p.held_out}) for p in all_pictures]
    (run.out / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    groups = {
        "names": sorted({p.name for p in all_pictures}),
        "styles": list(PACKAGES),
        "backgrounds": list(BACKGROUNDS),
    }
    (run.out / VOCABULARY).write_text(json.dumps(FORM | groups, indent=1, ensure_ascii=False) + "\n")
    console.print(f"{len(all_pictures)} pictures, {sum(p.held_out for p in all_pictures)} held out")


def codebook(run: Run) -> torch.Tensor:
    """The patch codebook, learnt once from the pictures of every name."""
    stage, size = run.recipe["tokenizer"], run.recipe["data"]["size"]
    codes, patch = stage["model"]["num_vq_embeddings"], stage["patch"]
    path = run.file("codebook", size, codes, patch)
    if not path.exists():
        torch.manual_seed(0)
        codebook = learn_codebook(pictures(run, False, **EVERY)[0], codes, patch)
        write_atomically(path, lambda partial: torch.save(codebook, partial))
    return torch.load(path, weights_only=True)


def tokenizer(run: Run) -> None:
    """Train the decoder of the image tokenizer; weights are stored in float16."""
    stage = run.recipe["tokenizer"]
    checkpoint = run.file("tokenizer", run.recipe["data"]["size"], stage["patch"], stage["model"])
    rgba = pictures(run, False, **EVERY)[0]
    model = train_tokenizer(
        rgba, codebook(run), stage["patch"], stage, run.budget(stage), checkpoint, device=run.device
    )
    model.half().save_pretrained(run.out / "vqvae")


def code_set(run: Run) -> tuple:
    """The text tokenizer, and the training pictures as codes."""
    stage = run.recipe["target"]
    rgba, training = pictures(run, False)
    names = sorted({p.name for p in build(run.work / "data", **run.recipe["data"] | EVERY)[1]})
    prompts = [
        caption(name, style, colour) for name in names for style in ("flat", "cartoon", "3d") for colour in BACKGROUNDS
    ]
    text = train_text_tokenizer(prompts, stage["text_vocabulary"])
    return text, encode_pictures(codebook(run), run.recipe["tokenizer"]["patch"], rgba, training, len(BACKGROUNDS))


def target(run: Run) -> None:
    """Train the decoder-only model; weights are stored in bfloat16."""
    stage = run.recipe["target"]
    text, coded = code_set(run)
    codes = run.recipe["tokenizer"]["model"]["num_vq_embeddings"]
    checkpoint = run.file("target", run.recipe["data"], codes, stage["text_vocabulary"], stage["model"])
    model = train_target(coded, text, codes, stage, run.budget(stage), checkpoint, device=run.device)
    text.save_pretrained(run.out / "tokenizer")
    model.bfloat16().save_pretrained(run.out / "transformer")
    index = {
        "_class_name": "TextToImagePipeline",
        "tokenizer": ["transformers", type(text).__name__],
        "transformer": ["transformers", "LlamaForCausalLM"],
        "vqvae": ["diffusers", "VQModel"],
        **run.recipe["pipeline"],
    }
    (run.out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def prompts(run: Run, pipe: Pipeline) -> list[dict]:
    """Prompts as users write them, each guidance in turn, and training pictures with their codes."""
    stage, data, rng = run.recipe["capture"], code_set(run)[1], random.Random(0)
    order = rng.sample(data.pictures, len(data.pictures))
    rows: list[dict] = []
    for number in range(stage["sampled"]):
        picture = order[number % len(order)]
        colour = "white" if rng.random() < 0.6 else rng.choice(list(BACKGROUNDS))
        prompt = caption(picture.name, picture.style, colour)
        rows.append({"prompt": prompt, "guidance": GUIDANCES[number % len(GUIDANCES)]})
    variants = [(i, variant) for i in range(len(data.pictures)) for variant in range(data.codes.shape[1])]
    for i, variant in rng.sample(variants, min(stage["taken"], len(variants))):
        prompt = caption(data.pictures[i].name, data.pictures[i].style, data.backgrounds[i][variant])
        rows.append({"prompt": prompt, "guidance": 1.0, "tokens": data.codes[i, variant].tolist()})
    return rows


def drafters(run: Run, only: str | None = None) -> None:
    """Train the drafters and calibrate them."""
    train_drafters(run, prompts, only)


def check(settings: dict, path: Path) -> None:
    """Raise MmspecError for settings that these stages do not support."""
    check_drafters(settings, path)
    if settings["pipeline"].get("end_of_row"):
        raise MmspecError(f"{path}: training makes no end-of-row tokens: set pipeline.end_of_row to false")


STAGES = {"data": data, "tokenizer": tokenizer, "target": target, "drafters": drafters}
NEEDED = ("data", "tokenizer", "target", "capture", "drafters", "pipeline")
