"""`mmspec train`: a recipe in YAML rebuilds a model folder, stage by stage, from nothing."""

import shutil
import sys
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


def find_recipes(recipe: Path) -> ModuleType:
    """The package `recipes`, which a checkout has beside `models` and a wheel lacks."""
    folders = [*recipe.resolve().parents, Path.cwd(), Path(__file__).resolve().parents[2]]
    folder = next((folder for folder in folders if (folder / "recipes" / "__init__.py").is_file()), None)
    if folder is None:
        raise MmspecError(
            f"{recipe} needs the package `recipes`, which is not part of the wheel: run it from a checkout of mmspec"
        )
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return import_module("recipes")


def read(path: Path) -> tuple[dict, ModuleType]:
    """A recipe as data, and the module that has its stages: its `module`, or by its `task` in recipes of before."""
    if not path.is_file():
        raise MmspecError(f"no recipe at {path}: give the path of a recipe.yaml, such as models/emoji-64/recipe.yaml")
    try:
        settings = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise MmspecError(f"{path} is not valid YAML: {error}") from None
    by_task: dict[str, str] = find_recipes(path).BY_TASK
    task = settings.pop("task", "text-to-image")
    name = settings.pop("module", None)
    if name is None and task not in by_task:
        raise unknown("task", task, by_task)
    try:
        stages = import_module(name or by_task[task])
    except ImportError as error:
        if error.name != (name or by_task[task]) and isinstance(error, ModuleNotFoundError):
            raise
        raise MmspecError(f"{path}: module {name} does not load: {error}") from None
    missing = [key for key in stages.NEEDED if key not in settings]
    if missing:
        raise MmspecError(f"{path} lacks {', '.join(missing)}: see models/emoji-64/recipe.yaml")
    stages.check(settings, path)
    return settings, stages


def train(
    recipe: Path, work: Path, out: Path | None = None, device: str | None = None, stages: Sequence[str] = ()
) -> Path:
    """Run the stages of a recipe (a file, or a folder that holds recipe.yaml) in order, and return the model folder.

    All stages run, or those named; `drafters.hawk` trains that drafter alone. Each stage resumes from its checkpoint in
    `work`. The model goes to `work/model` if `out` is not given.
    """
    recipe = recipe / "recipe.yaml" if recipe.is_dir() else recipe
    settings, module = read(recipe)
    parts = {*module.STAGES, *(f"drafters.{name}" for name in settings["drafters"])}
    for stage in stages:
        if stage not in parts:
            raise unknown("stage", stage, parts)
    if device and torch.device(device).index:
        raise MmspecError(
            f"training does not choose among GPUs: set CUDA_VISIBLE_DEVICES={torch.device(device).index} and use "
            "--device cuda"
        )
    run = Run(settings, work, out or work / "model", device)
    run.work.mkdir(parents=True, exist_ok=True)
    for stage in stages or module.STAGES:
        name, _, part = stage.partition(".")
        console.rule(stage)
        module.drafters(run, part) if part else module.STAGES[name](run)
    if recipe.resolve() != (run.out / "recipe.yaml").resolve():
        shutil.copyfile(recipe, run.out / "recipe.yaml")
    console.print(f"model in {run.out}")
    return run.out
