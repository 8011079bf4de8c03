"""`mmspec bench drafters`: every drafter side by side, on pictures, speech, descriptions of pictures, and text."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mmspec import drafters, zoo
from mmspec.bench import own, report
from mmspec.bench.own import labels_of
from mmspec.bench.report import formatted, joined
from mmspec.bench.vlm import questions
from mmspec.errors import MmspecError
from mmspec.files import write_atomically
from mmspec.versions import provenance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# No drafter of `recipes.drafters` learns from so many prompts of each field.
MEASURED = 16

# Budgets of draft nodes that all are compared at.
NODES = (8, 16, 32)

# What a language model is asked, without pictures.
QUESTIONS = (
    "Why do leaves change their colour in autumn?",
    "Give me three tips for sleeping better.",
    "Write a short letter that thanks a friend for a gift.",
    "Explain what a volcano is to a child.",
    "List the steps of making a cup of tea.",
    "What is the difference between weather and climate?",
    "Write a short story about a dog that finds a key.",
    "How do bees make honey?",
)


@dataclass(frozen=True, slots=True)
class Field:
    """What a table is about: a bundled model and the prompts that it is measured on."""

    name: str
    model: str

    def rows(self, folder: Path, count: int) -> list[dict]:
        """`count` of the model's prompts that are held out, the last ones, or questions; fewer where there are not so
        many.
        """
        if self.name == "text":
            return [{"prompt": question} for question in QUESTIONS[:count]]
        held_out = [row for row in questions(folder) if row["held_out"]]
        if self.name == "descriptions":
            pictures = dict.fromkeys(row["image"] for row in held_out if row.get("image"))
            return [{"prompt": "Describe this picture.", "image": picture} for picture in pictures][-count:]
        return list({row["prompt"]: row for row in held_out}.values())[-count:]


FIELDS = (
    Field("pictures", "emoji-64"),
    Field("speech", "wren-86"),
    Field("descriptions", "magpie-135"),
    Field("text", "magpie-135"),
)


def entrants(folder: Path, trained: Path | None) -> list[str]:
    """All that a model can be drafted by: names, those made of the model's default one, and folders of trained ones."""
    own = sorted(path.parent for path in trained.glob("*/config.json")) if trained else []
    default = zoo.read_index(folder)["drafter"] if (folder / zoo.INDEX).is_file() else "lookup"
    return [*drafters.usable(folder), "del", f"cascade:{default}", f"rasd:{default}", *map(str, own)]


def minutes_of(folder: Path) -> float | None:
    """How long a drafter was trained, None if it does not say so."""
    try:
        return 60 * json.loads((folder / "report.json").read_text())["training"]["hours"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


HEADS = ("", "parameters, M", "minutes of training")
BEST = ("accepted length", "nodes", "tokens/s", "over AR", "over generate", "draft")


def line(row: dict, nodes: Sequence[int]) -> list[str]:
    """One table line: lengths with equal nodes, then what it does with as many nodes as it chooses."""
    total = sum(row["seconds"].values())
    lengths = row["by_nodes"] or {}
    return [
        row["label"],
        formatted(row["parameters"] / 1e6 or None, ".1f"),
        formatted(row.get("minutes"), ".0f"),
        *(formatted(lengths.get(str(nodes), {}).get("mean_acceptance_length"), ".2f") for nodes in nodes),
        formatted(row["mean_acceptance_length"], ".2f"),
        formatted(row["nodes_per_round"], ".1f"),
        f"{row['tokens_per_second']:.0f}",
        own_speedup(row),
        formatted(row["over_generate"], ".2f", "×"),
        f"{100 * row['seconds']['draft'] / total:.0f} %",
    ]


def own_speedup(row: dict) -> str:
    """The speed-up with its interval over prompts."""
    low, high = row["speedup_interval"] or (None, None)
    return f"{row['speedup']:.2f}×" + (f" [{low:.2f}, {high:.2f}]" if low is not None else "")


def markdown(results: dict) -> str:
    """The whole report."""
    origin = ", ".join(f"{key} {value}" for key, value in results["provenance"].items())
    said = (
        "Accepted lengths with equal numbers of draft nodes a round do not depend on the machine; the columns after "
        "them are of rounds with as many nodes as pay here. Brackets are intervals over prompts. All rows are "
        "lossless, under the rule `exact`. Drafters that learn while they decode begin each column with nothing."
    )
    parts = ["# Every drafter, side by side", origin, said]
    for setting in dict.fromkeys((row["field"], row["setting"]) for row in results["rows"]):
        rows = [row for row in results["rows"] if (row["field"], row["setting"]) == setting]
        heads = [*HEADS, *(f"{nodes} nodes" for nodes in results["nodes"]), *BEST]
        title = f"## {setting[0]}, {rows[0]['model']}, {rows[0]['count']} prompts, {setting[1]}"
        parts += [title, joined(heads, [line(row, results["nodes"]) for row in rows])]
    return "\n\n".join(parts) + "\n"


def draw(axes: "Axes", rows: Sequence[dict], title: str, nodes: int) -> None:
    """Bars of the speed-up over those of the accepted length with so many nodes, the fastest first."""
    rows = sorted((row for row in rows if row["by_nodes"]), key=lambda row: -row["speedup"])
    labels = [row["label"] for row in rows]
    lengths = [row["by_nodes"][str(nodes)]["mean_acceptance_length"] for row in rows]
    axes.barh(labels, lengths, color="#d8dee9", label=f"accepted length, {nodes} nodes")
    axes.barh(labels, [row["speedup"] for row in rows], height=0.45, color="#2a6f97", label="speed-up over AR")
    axes.axvline(1, color="black", linewidth=0.6)
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=7)


def plot(results: dict, path: Path) -> None:
    """A panel for each table."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tables = list(dict.fromkeys((row["field"], row["temperature"]) for row in results["rows"]))
    columns = len(dict.fromkeys(temperature for _, temperature in tables))
    figure, axes = pyplot.subplots(
        -(-len(tables) // columns), columns, figsize=(7 * columns, 4 * len(tables) / columns), squeeze=False
    )
    for panel, (name, temperature) in zip(axes.flat, tables):
        rows = [row for row in results["rows"] if (row["field"], row["temperature"]) == (name, temperature)]
        draw(panel, rows, f"{name}, T = {temperature:g}", results["nodes"][len(results["nodes"]) // 2])
    figure.tight_layout()
    write_atomically(path, partial(figure.savefig, dpi=110, format="png"))
    pyplot.close(figure)


def run(
    out: Path,
    trained: Path | None = None,
    count: int = 4,
    temperatures: Sequence[float] = (0.0, 1.0),
    dtype: str = "bf16",
    device: str = "cpu",
    seed: int = 0,
    nodes: Sequence[int] = NODES,
    tokens: int | None = None,
    fields: Sequence[Field] = FIELDS,
) -> Path:
    """Write `results.json`, `results.md` and `results.png` to `out`, anew after each field, and return it; each field's
    own report is in a folder of its name.

    `trained` has a folder for each field with drafters that were trained, each in a folder of its own. `tokens` limits
    the length of answers.
    """
    if count > MEASURED:
        raise MmspecError(f"--count {count}: {MEASURED} prompts of each field are kept from training, give no more")
    origin = {"suite": "drafters", "model": "the bundled ones", "provenance": provenance(device), "seed": seed}
    results: dict = origin | {"nodes": list(nodes), "rows": []}
    for field in fields:
        folder = zoo.resolve(field.model, allow_transformers=True)
        own_trained = trained / field.name if trained else None
        names = [name for name in entrants(folder, own_trained) if name != "none"]
        minutes = {label: minutes_of(Path(name)) for name, label in labels_of(names).items() if "/" in name}
        (out / field.name).mkdir(parents=True, exist_ok=True)
        rows = field.rows(folder, count)
        own.run(
            field.model,
            folder,
            rows,
            out / field.name,
            names,
            temperatures,
            (dtype,),
            device,
            seed,
            tokens,
            nodes=tuple(nodes),
        )
        found = json.loads((out / field.name / "results.json").read_text())["rows"]
        for row in found:
            about = {"field": field.name, "model": folder.name, "minutes": minutes.get(row["label"])}
            about["count"] = len(row["prompts"])
            results["rows"].append({key: value for key, value in row.items() if key != "prompts"} | about)
        report.save(out, "results", results, markdown(results))
        plot(results, out / "results.png")
    return out
