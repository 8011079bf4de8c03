"""`mmspec info`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from mmspec.cli.common import Switch
from mmspec.errors import MmspecError


@dataclass
class Info:
    """Models, drafters, acceptance rules, devices and versions; or one model.

    Example: mmspec info emoji-64
    """

    model: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[MODEL]", help_behavior_hint="")] = None
    """A bundled name, a folder, or a hub id: its task, defaults, voices, words, and drafters with measured figures. The
    folder of a drafter: its layout, and the model that it was made for."""
    target: Annotated[str | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")] = None
    """For a drafter's folder: whether it fits this model."""
    json: Switch = False
    """Machine-readable."""

    def run(self) -> int:
        drafter = self.drafter()
        if self.target and drafter is None:
            raise MmspecError(f"--target asks whether a drafter fits, and {self.model} is none: give its folder")
        if drafter is not None:
            facts = drafter
        else:
            facts = machine_facts() if self.model is None else model_facts(self.model)
        if self.json:
            print(json.dumps(facts, indent=1))
            return 0
        tables = machine_tables if self.model is None else drafter_tables if drafter is not None else model_tables
        for table in tables(facts):
            Console().print(table)
        return 0

    def drafter(self) -> dict | None:
        """What there is to say of a drafter's folder, None for anything else."""
        folder = Path(self.model).expanduser() if self.model else None
        if folder is None or not (folder / "config.json").is_file():  # torch is imported from here on
            return None
        from mmspec import zoo
        from mmspec.drafters.facts import drafter_facts, is_drafter

        if not is_drafter(folder, within=self.target is not None):
            return None
        return drafter_facts(folder, zoo.resolve(self.target, allow_transformers=True) if self.target else None)


def machine_facts() -> dict:
    """What is here, as data."""
    import torch

    from mmspec import zoo
    from mmspec.drafters.table import names
    from mmspec.engine.accept import RULES, acceptance
    from mmspec.pipelines import task_of
    from mmspec.versions import versions

    gpus = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return {
        **versions(),
        "devices": ["cpu", *gpus],
        "threads": torch.get_num_threads(),
        "models": {
            entry.name: {
                "task": task_of(entry.folder),
                "drafters": entry.drafters,
                "megabytes": round(entry.bytes / 1e6, 1),
            }
            for entry in zoo.bundled().values()
        },
        "drafters": sorted({*names(), *(name for entry in zoo.bundled().values() for name in entry.drafters)}),
        "acceptance": {name: "lossless" if acceptance(name).lossless else "lossy" for name in RULES},
    }


def machine_tables(facts: dict) -> list[Table]:
    """What is here, to be read."""
    models = make_table("models", "model", "task", "trained drafters", "MB")
    for name, model in facts["models"].items():
        models.add_row(name, model["task"], ", ".join(model["drafters"]), f"{model['megabytes']:.0f}")
    here = make_table("this machine", "what", "which")
    for key in ("mmspec", "python", "torch", "transformers", "diffusers", "threads"):
        here.add_row(key, str(facts[key]))
    here.add_row("devices", ", ".join(facts["devices"]))
    here.add_row("drafters", ", ".join(facts["drafters"]))
    here.add_row("acceptance", ", ".join(f"{name} ({kind})" for name, kind in facts["acceptance"].items()))
    models.caption = "mmspec info MODEL says more of one"
    return [models, here]


def model_facts(name: str) -> dict:
    """A model by its folder alone, as data: nothing of it is loaded."""
    from mmspec import zoo
    from mmspec.drafters.table import usable
    from mmspec.pipelines import check_task, task_of
    from mmspec.pipelines.generation_config import applied, read_generation_config, sampling_defaults
    from mmspec.pipelines.vocabulary import Vocabulary

    folder = zoo.resolve(name, allow_transformers=True)
    index = artist_facts(folder) or speaker_facts(folder)
    if not index and (folder / zoo.INDEX).is_file():
        index = zoo.read_index(folder)
    task, refused = task_of(folder), ""
    if not index and task == "image-text-to-text":
        try:
            check_task(folder, task)
        except MmspecError as error:
            task, refused = "none", str(error)
    measured = read_results(folder / zoo.RESULTS)
    figures = measured.pop("drafters", {})
    vocabulary = Vocabulary.of(folder)
    # Long lists are settings that only the pipeline reads.
    defaults: dict[str, object] = {
        key: value for key, value in index.items() if isinstance(value, int | float | str) and not key.startswith("_")
    }
    if not index:
        generation = read_generation_config(folder)
        defaults = sampling_defaults(generation) | applied(generation) | {"drafter": "lookup"}
    return {
        "model": name,
        "folder": str(folder),
        "task": task,
        "refused": refused,
        "megabytes": round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 1),
        "defaults": defaults,
        "voices": index.get("voices", []),
        "prompts": vocabulary.prompt if vocabulary else "",
        "words": vocabulary.groups if vocabulary else {},
        "drafters": {drafter: figures.get(drafter, {}) for drafter in usable(folder)},
        "measured": measured,
    }


def artist_facts(folder: Path) -> dict:
    """The family of a model that people bring and that draws, and how it samples; else nothing."""
    from mmspec.pipelines.families import artist_class, draws, example_prompts, folder_family
    from mmspec.pipelines.generation_config import read_generation_config
    from mmspec.pipelines.llamagen_files import CAPTIONS, CLASSES

    if not draws(folder):
        return {}
    family, part = folder_family(folder), folder
    if family == "GlmImagePipeline":  # its first stage
        family, part = "glm_image", folder / "vision_language_encoder"
    artist, generation = artist_class(family), read_generation_config(part)
    if family == "llamagen":
        generation = (CLASSES if example_prompts(folder) else CAPTIONS) | generation
    scale = generation.get("guidance_scale")
    guidance = {"guidance_scale": artist.guidance if scale is None else scale} if artist.guided else {}
    return {"family": family, **guidance, **artist.sampling_of(generation), "drafter": "jacobi"}


def speaker_facts(folder: Path) -> dict:
    """What a speech language model that people bring is called, how it samples, and its voices; else nothing."""
    from mmspec.pipelines.families import speaker_class, speaker_family
    from mmspec.pipelines.generation_config import read_generation_config, speaker_defaults

    family = speaker_family(folder)
    if not family:
        return {}
    speaker = speaker_class(family)
    sampling = speaker_defaults(read_generation_config(folder), speaker.sampling)
    return {"family": speaker.name, **sampling, "drafter": "jacobi", "voices": list(speaker.voices)}


def drafter_tables(facts: dict) -> list[Table]:
    """A drafter's folder, to be read."""
    about = make_table(facts["drafter"], "what", "which")
    about.add_row("layout", facts["layout"] + ("" if facts["read"] else ", which is not read"))
    about.add_row("made for", facts["for"])
    about.add_row("hidden size", str(facts["hidden_size"] or "not said"))
    about.add_row("size", f"{facts['megabytes']:.0f} MB")
    if "fits" in facts:
        about.add_row(f"fits {facts['model']}", facts["why"] and f"no: {facts['why']}" or "yes")
    else:
        about.caption = "mmspec info FOLDER --target MODEL says whether it fits"
    return [about]


def read_results(path: Path) -> dict:
    """The figures that a model's folder brings, nothing if it brings none."""
    if not path.is_file():
        return {}
    try:
        results = json.loads(path.read_text())
        if not all(isinstance(figures, dict) for figures in results.get("drafters", {}).values()):
            raise ValueError("drafters must be objects")
        return results
    except (OSError, ValueError, AttributeError) as error:
        raise MmspecError(f"{path} cannot be read ({error}): restore it from the model's source") from None


def model_tables(facts: dict) -> list[Table]:
    """A model, to be read."""
    about = make_table(facts["model"], "what", "which")
    about.add_row("task", facts["task"])
    if facts["refused"]:
        about.add_row("not read", facts["refused"])
    about.add_row("folder", f"{facts['folder']} ({facts['megabytes']:.0f} MB)")
    if facts["defaults"]:
        about.add_row("defaults", "\n".join(f"{key} {value}" for key, value in facts["defaults"].items()))
    if facts["voices"]:
        about.add_row("voices", ", ".join(facts["voices"]))
    if facts["prompts"]:
        about.add_row("prompts", facts["prompts"])
    for group, names in facts["words"].items():
        shown = ", ".join(names[:12]) + (f" ... ({len(names)}; mmspec image --list)" if len(names) > 12 else "")
        about.add_row(group, shown)
    drafters = make_table("drafters", "drafter", "tokens a round", "speed-up")
    for name, figures in facts["drafters"].items():
        length, speed = figures.get("mean_acceptance_length"), figures.get("speedup")
        default = " (default)" if name == facts["defaults"].get("drafter") else ""
        drafters.add_row(
            name + default, "" if length is None else f"{length:.2f}", "" if speed is None else f"{speed:.2f}x"
        )
    measured = facts["measured"]
    if measured:
        keys = ("setting", "dtype", "device", "processor", "threads", "commit", "source")
        drafters.caption = ", ".join(
            f"{key} {measured[key]}" if key in ("threads", "commit", "source") else str(measured[key])
            for key in keys
            if measured.get(key)
        )
    return [about, drafters]


def make_table(title: str, *columns: str) -> Table:
    """An empty table whose title and caption stand on the left."""
    table = Table(*columns, title=title, title_justify="left", caption_justify="left")
    for column in table.columns[1:]:
        column.overflow = "fold"
    return table
