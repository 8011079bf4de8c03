"""What a training was and what came of it: the drafter's card, its curve, and the same as data."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

from mmspec.errors import MmspecError
from mmspec.files import write_atomically
from mmspec.train.measure import NODES, Measurement
from mmspec.versions import provenance

if TYPE_CHECKING:
    from mmspec.train.stages import Training


def write_report(folder: Path, training: "Training", results: list[Measurement]) -> None:
    """`report.json`, `curve.png` and the card `README.md` in a drafter's folder."""
    corpus, settings, log = training.corpus, training.settings, read_log(training.work / "log.jsonl")
    plain = next(result.tokens_per_second for result in results if result.name == "none")
    report = {
        "drafter": settings.kind,
        "model": str(corpus.pipe.folder.name if corpus.pipe.folder else ""),
        "target": corpus.pipe.target.weights_hash,
        "data": {
            "prompts": {split: len(rows) for split, rows in corpus.splits.items()},
            "sequences": len(corpus.sequences("train")),
            "tokens": sum(one.tokens for one in corpus.sequences("train")),
            "sampling": {
                name: value
                for name, value in asdict(corpus.options).items()
                if isinstance(value, float | int) and not isinstance(value, bool)
            },
            "guidance": corpus.guidance,
            "answers": corpus.settings.answers,
        },
        "training": asdict(settings) | {"hours": log[-1]["seconds"] / 3600 if log else 0.0, "log": log},
        "nodes": NODES,
        "results": [asdict(result) | {"speedup": result.tokens_per_second / plain} for result in results],
        "provenance": provenance(str(corpus.pipe.device)),
    }
    text = json.dumps(report, indent=1, default=str) + "\n"
    write_atomically(folder / "report.json", lambda path: path.write_text(text))
    write_atomically(folder / "README.md", lambda path: path.write_text(card(report)))
    draw_curve(log, folder / "curve.png")


def read_log(path: Path) -> list[dict]:
    """What training wrote of itself."""
    if not path.is_file():
        raise MmspecError(f"{path} is missing: run the stage train first")
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(results: list[dict]) -> str:
    """Acceptance lengths on held-out prompts, whole and by depth, and speed."""
    depth = max(len(result["by_depth"]) for result in results)
    heads = ["drafter", "acceptance length", *(f"≥ {k}" for k in range(1, depth + 1)), "tokens/s", "speed-up"]
    rows = [heads, ["---"] * len(heads)]
    for result in results:
        shares = [f"{100 * share:.0f} %" for share in result["by_depth"]] + ["–"] * (depth - len(result["by_depth"]))
        speed = f"{result['tokens_per_second']:.0f}", f"{result['speedup']:.2f}×"
        rows.append([result["name"], f"{result['acceptance_length']:.2f}", *shares, *speed])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def card(report: dict) -> str:
    """A model card in Markdown."""
    data, training, model = report["data"], report["training"], report["model"]
    origin = ", ".join(f"{key} {value}" for key, value in report["provenance"].items() if value)
    sampling = ", ".join(f"{name} {value:g}" for name, value in data["sampling"].items())
    answers = "the target's own answers" if data["answers"] == "own" else "answers of the data"
    return f"""---
library_name: mmspec
tags: [speculative-decoding, {report["drafter"]}]
---

# A {report["drafter"]} drafter for {model}

Drafts tokens for {model} (weights {report["target"]}), which verifies them: the output is the same as without, sooner.

    mmspec verify MODEL --drafters THIS_FOLDER

## Data

{data["prompts"]["train"]} prompts, {data["sequences"]} sequences, {data["tokens"]} tokens: {answers}
({sampling}, guidance {data["guidance"]:g}). {data["prompts"]["validation"]} other prompts chose the checkpoint and
calibrated it, {data["prompts"]["test"]} more were kept for the table below.

## Training

{training["steps"]} steps of {training["batch"] * training["accumulation"]} sequences, {training["hours"]:.2f} hours of
computing. Options: {json.dumps(training["model"])}, loss {json.dumps(training["loss"])}.

![acceptance length and loss](curve.png)

## Acceptance on prompts that it has not seen

Batch 1, at most {report["nodes"]} draft tokens a round; "≥ k" is the share of rounds that accept k draft tokens or
more.

{table(report["results"])}

{origin}
"""


def draw_curve(log: list[dict], path: Path) -> None:
    """Loss and held-out acceptance length by step."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.6))
    steps = [line["step"] for line in log]
    axes.plot(steps, [line["acceptance_length"] for line in log], color="#2a6f97", marker="o")
    axes.set_xlabel("step")
    axes.set_ylabel("held-out acceptance length", color="#2a6f97")
    other = axes.twinx()
    other.plot(steps, [line.get("loss", float("nan")) for line in log], color="#e76f51", linewidth=1)
    other.set_ylabel("loss", color="#e76f51")
    figure.tight_layout()
    write_atomically(path, partial(figure.savefig, dpi=130, format="png"))
    pyplot.close(figure)
