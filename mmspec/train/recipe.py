"""`mmspec train`: a recipe in YAML rebuilds a model folder, stage by stage, from nothing."""

import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
import yaml
from rich.console import Console

from mmspec.errors import MmspecError, unknown
from mmspec.train.run import Run

console = Console(stderr=True)
TASKS = {
    "text-to-image": "recipes.emoji_64.stages",
    "text-to-speech": "recipes.wren_86.stages",
    "image-text-to-text": "recipes.magpie_135.stages",
}


def read(path: Path) -> tuple[dict, ModuleType]:
    """A recipe as data, and the module that has its stages."""
    if not path.is_file():
        raise MmspecError(f"no recipe at {path}: give the path of a recipe.yaml, such as models/emoji-64/recipe.yaml")
    try:
        found = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise MmspecError(f"{path} is not valid YAML: {error}") from None
    task = found.pop("task", "text-to-image")
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    stages = import_module(TASKS[task])
    missing = [key for key in stages.NEEDED if key not in found]
    if missing:
        raise MmspecError(f"{path} lacks {', '.join(missing)}: see models/emoji-64/recipe.yaml")
    if found["pipeline"].get("end_of_row"):
        raise MmspecError(f"{path}: training makes no end-of-row tokens: set pipeline.end_of_row to false")
    return found, stages


def train(
    recipe: Path, work: Path, out: Path | None = None, device: str | None = None, stages: Sequence[str] = ()
) -> Path:
    """Run the stages of a recipe (a file, or a folder that holds recipe.yaml) in order, all or those named (`drafters.hawk` trains that one alone), and return the model folder.

    Each stage resumes from its checkpoint in `work`. The model goes to `work/model` if `out` is not given.
    """
    recipe = recipe / "recipe.yaml" if recipe.is_dir() else recipe
    settings, known = read(recipe)
    parts = {*known.STAGES, *(f"drafters.{name}" for name in settings["drafters"])}
    for stage in stages:
        if stage not in parts:
            raise unknown("stage", stage, parts)
    if device and torch.device(device).index:
        raise MmspecError(
            f"training does not choose among GPUs: set CUDA_VISIBLE_DEVICES={torch.device(device).index} and use --device cuda"
        )
    run = Run(settings, work, out or work / "model", device)
    run.work.mkdir(parents=True, exist_ok=True)
    for stage in stages or known.STAGES:
        name, _, part = stage.partition(".")
        console.rule(stage)
        known.drafters(run, part) if part else known.STAGES[name](run)
    if recipe.resolve() != (run.out / "recipe.yaml").resolve():
        shutil.copyfile(recipe, run.out / "recipe.yaml")
    console.print(f"model in {run.out}")
    return run.out
