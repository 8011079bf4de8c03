"""`mmspec train`: a recipe in YAML rebuilds a model folder, stage by stage, from nothing."""

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from rich.console import Console

from mmspec.errors import MmspecError, unknown
from mmspec.pipelines import pipeline, task_of
from mmspec.placement import device_of, has_fast_bf16
from mmspec.train.corpus import Corpus, CorpusSettings
from mmspec.train.drafter import DrafterSettings, drafter_class
from mmspec.train.run import Run
from mmspec.train.stages import STAGES, Training

console = Console(stderr=True)


def find(path: Path, module: str) -> None:
    """Put the folder that holds a module on `sys.path`: one above the recipe at `path`, or the checkout of mmspec."""
    name = Path(*module.split("."))
    for folder in (*path.resolve().parents, Path.cwd(), Path(__file__).resolve().parents[2]):
        if (folder / name).with_suffix(".py").is_file() or (folder / name / "__init__.py").is_file():
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
            return
    raise MmspecError(
        f"{path} needs the module {module}, and no folder above it holds {name}: recipes are not part of the wheel; "
        "run it from a checkout of mmspec"
    )


def read(path: Path) -> tuple[dict, ModuleType]:
    """A recipe as data, and the module that has its stages: its `module`, or by its `task` in recipes of before."""
    if not path.is_file():
        raise MmspecError(
            f"no recipe at {path}: give the path of a recipe.yaml, such as models/emoji-64/recipe.yaml; recipes "
            "rebuild whole models, and docs/train-a-drafter.md says how a drafter is trained for another"
        )
    try:
        settings = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise MmspecError(f"{path} is not valid YAML: {error}") from None
    module, task = settings.pop("module", None), settings.pop("task", "text-to-image")
    if module is None:
        find(path, "recipes")
        by_task: dict[str, str] = import_module("recipes").BY_TASK
        if task not in by_task:
            raise unknown("task", task, by_task)
        module = by_task[task]
    find(path, module)
    stages = import_module(module)
    missing = [key for key in stages.NEEDED if key not in settings]
    if missing:
        raise MmspecError(f"{path} lacks {', '.join(missing)}: {module} asks for {', '.join(stages.NEEDED)}")
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


def drafter_settings(stage: dict) -> DrafterSettings:
    """The settings of a drafter in a recipe; `answers` and `initial` stand beside them."""
    known = [field.name for field in fields(DrafterSettings)]
    for key in stage:
        if key not in (*known, "answers", "initial"):
            raise MmspecError(
                f"{key} is none of {', '.join(known)}, answers and initial: recipes of before had budget (write "
                "steps: 1000), own_answers (write answers: own, or data) and options of the loss beside the others "
                "(write loss: {noise: 0.05})"
            )
    if "kind" not in stage:
        raise MmspecError("there is no kind: write kind: medusa, for example")
    return DrafterSettings.of(**{key: value for key, value in stage.items() if key in known})


def corpus_settings(capture: dict, stage: dict) -> CorpusSettings:
    """How the target answers for a drafter of a recipe, whose section capture says what is the same for all."""
    shared = {key: capture[key] for key in ("batch", "length", "held_out") if key in capture}
    answers = stage.get("answers", "own")
    return CorpusSettings(answers=answers, options={"temperature": capture.get("temperature")}, **shared)


def check_drafters(settings: dict, path: Path) -> None:
    """Raise MmspecError for a drafter of the recipe at `path` that cannot be trained as it is written."""
    for name, stage in settings["drafters"].items():
        try:
            drafter_settings(stage)
            corpus_settings(settings["capture"], stage)
        except MmspecError as error:
            raise MmspecError(f"{path}: drafters.{name}: {error}") from None


def train_drafters(run: Run, rows: Callable[[Run, Any], list[dict]], only: str | None = None) -> None:
    """Train the drafters of a recipe, or one, for the model that the run has made.

    `rows(run, pipe)` gives prompts as `read_prompts` does, for the model's pipeline.
    """
    folder = run.out.absolute()
    dtype = "bf16" if has_fast_bf16(device_of(run.device)) else "fp32"
    pipe = pipeline(task_of(folder), folder, device=run.device, dtype=dtype)
    prompts = rows(run, pipe)
    for name, stage in run.recipe["drafters"].items():
        if only in (None, name):
            settings, answers = drafter_settings(stage), corpus_settings(run.recipe["capture"], stage)
            corpus = Corpus(pipe, prompts, answers, run.work, drafter_class(settings.kind).calibrates_greedy)
            initial = run.work / stage["initial"] if "initial" in stage else None
            training = Training(corpus, settings, run.out / "drafters" / name, run.device, initial=initial)
            training.run(STAGES[:-1])  # a model folder reports on all of its drafters at once
