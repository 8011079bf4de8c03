"""`mmspec train`: a recipe in YAML rebuilds a model folder, stage by stage, from nothing."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from rich.console import Console

from mmspec.errors import MmspecError, unknown
from mmspec.picture import replace
from mmspec.pipelines.text_to_image import TextToImagePipeline
from mmspec.training import capture as capturing
from mmspec.training.drafters import train_drafter
from mmspec.training.emoji import BACKGROUNDS, CATEGORIES, Picture, build, caption
from mmspec.training.fit import Budget
from mmspec.training.target import encode_pictures, train_target, train_text_tokenizer
from mmspec.training.tokenizer import learn_codebook, train_tokenizer

console = Console(stderr=True)
EVERY = {"words": 99, "categories": CATEGORIES}


@dataclass(slots=True)
class Run:
    """One run of a recipe: its settings, where checkpoints lie, and the model folder that it fills."""

    recipe: dict
    work: Path
    out: Path
    device: str | None

    def pictures(self, held_out: bool, **changes: object) -> tuple[np.ndarray, list[Picture]]:
        """The pictures that are (not) held out; `changes` to the data settings, such as `EVERY`."""
        rgba, pictures = build(self.work / "data", **self.recipe["data"] | changes)
        index = [i for i, picture in enumerate(pictures) if picture.held_out == held_out]
        return rgba[index], [pictures[i] for i in index]

    def file(self, name: str, *origin: object) -> Path:
        """Where a result that was made from `origin` lies: other settings, another file."""
        digest = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()
        return self.work / f"{name}-{digest[:10]}.pt"

    def budget(self, stage: dict) -> Budget:
        return Budget(**stage["budget"])

    def pipeline(self) -> TextToImagePipeline:
        return TextToImagePipeline.from_pretrained(self.out.absolute(), torch_dtype=torch.bfloat16).to(self.device or "cpu")


def data(run: Run) -> None:
    """Fetch the art; write the prompts of the held-out pairs."""
    pictures = build(run.work / "data", **run.recipe["data"])[1]
    run.out.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"prompt": caption(p.name, p.style), "held_out": p.held_out}) for p in pictures]
    (run.out / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    console.print(f"{len(pictures)} pictures, {sum(p.held_out for p in pictures)} held out")


def codebook(run: Run) -> torch.Tensor:
    """The patch codebook, learnt once, from pictures of every name."""
    stage, size = run.recipe["tokenizer"], run.recipe["data"]["size"]
    codes, patch = stage["model"]["num_vq_embeddings"], stage["patch"]
    path = run.file("codebook", size, codes, patch)
    if not path.exists():
        torch.manual_seed(0)
        found = learn_codebook(run.pictures(False, **EVERY)[0], codes, patch)
        replace(path, lambda partial: torch.save(found, partial))
    return torch.load(path, weights_only=True)


def tokenizer(run: Run) -> None:
    """Train the decoder of the image tokenizer; weights are stored in float16."""
    stage = run.recipe["tokenizer"]
    checkpoint = run.file("tokenizer", run.recipe["data"]["size"], stage["patch"], stage["model"])
    rgba = run.pictures(False, **EVERY)[0]
    model = train_tokenizer(rgba, codebook(run), stage["patch"], stage, run.budget(stage), checkpoint, device=run.device)
    model.half().save_pretrained(run.out / "vqvae")


def code_set(run: Run) -> tuple:
    """Text tokenizer and coded pictures."""
    stage = run.recipe["target"]
    rgba, pictures = run.pictures(False)
    names = sorted({p.name for p in build(run.work / "data", **run.recipe["data"] | EVERY)[1]})
    prompts = [caption(name, style, colour) for name in names for style in ("flat", "cartoon", "3d") for colour in BACKGROUNDS]
    text = train_text_tokenizer(prompts, stage["text_vocabulary"])
    return text, encode_pictures(codebook(run), run.recipe["tokenizer"]["patch"], rgba, pictures, len(BACKGROUNDS))


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


def captured(run: Run) -> capturing.Captured:
    """Features of sampled and of true sequences, made once for all drafters."""
    stage = run.recipe["capture"]
    text, coded = code_set(run)
    goal = run.pipeline().target
    goal.narrowest = 1
    return capturing.capture(
        goal, text, coded, stage["sampled"], stage["taken"], run.file("captured", goal.hash, stage), batch=stage["batch"]
    )


def drafters(run: Run, only: str | None = None) -> None:
    """Train the drafters and calibrate them."""
    goal, found = run.pipeline().target, captured(run)
    for name, stage in run.recipe["drafters"].items():
        if only in (None, name):
            model = train_drafter(
                name, stage["kind"], stage, goal, found, run.budget(stage), run.file(name, goal.hash, stage["model"]), run.device
            )
            folder = run.out / "drafters" / name
            config = {
                "kind": stage["kind"],
                "hidden_size": goal.hidden_size,
                "stride": goal.grid.stride,
                "target": goal.hash,
                "beta": model.beta,
                "coupling": model.coupling,
                **stage["model"],
            }
            if stage["kind"] == "hawk-path":
                config |= {"vocabulary": goal.vocabulary, "grid": [goal.grid.height, goal.grid.width]}
            model.bfloat16().save_pretrained(folder)
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


STAGES: dict[str, Callable[[Run], None]] = {"data": data, "tokenizer": tokenizer, "target": target, "drafters": drafters}


def read(path: Path) -> dict:
    """A recipe as data."""
    if not path.is_file():
        raise MmspecError(f"no recipe at {path}: give the path of a recipe.yaml, such as models/emoji-64/recipe.yaml")
    try:
        found = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise MmspecError(f"{path} is not valid YAML: {error}") from None
    missing = [key for key in ("data", "tokenizer", "target", "capture", "drafters", "pipeline") if key not in (found or {})]
    if missing:
        raise MmspecError(f"{path} lacks {', '.join(missing)}: see models/emoji-64/recipe.yaml")
    if found["pipeline"].get("end_of_row"):
        raise MmspecError(f"{path}: training makes no end-of-row tokens: set pipeline.end_of_row to false")
    return found


def train(recipe: Path, work: Path, out: Path | None = None, device: str | None = None, stages: Sequence[str] = ()) -> Path:
    """Run the stages of a recipe (a file, or a folder that holds recipe.yaml) in order, all or those named (`drafters.hawk` trains that one alone), and return the model folder.

    Each stage resumes from its checkpoint in `work`. The model goes to `work/model` if `out` is not given.
    """
    recipe = recipe / "recipe.yaml" if recipe.is_dir() else recipe
    settings = read(recipe)
    parts = {*STAGES, *(f"drafters.{name}" for name in settings["drafters"])}
    for stage in stages:
        if stage not in parts:
            raise unknown("stage", stage, parts)
    if device and torch.device(device).index:
        raise MmspecError(
            f"training does not choose among GPUs: set CUDA_VISIBLE_DEVICES={torch.device(device).index} and use --device cuda"
        )
    run = Run(settings, work, out or work / "model", device)
    run.work.mkdir(parents=True, exist_ok=True)
    for stage in stages or STAGES:
        name, _, part = stage.partition(".")
        console.rule(stage)
        drafters(run, part) if part else STAGES[name](run)
    if recipe.resolve() != (run.out / "recipe.yaml").resolve():
        shutil.copyfile(recipe, run.out / "recipe.yaml")
    console.print(f"model in {run.out}")
    return run.out
