"""Results as JSON, as a Markdown table and as a plot."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mmspec.files import write_atomically

HEADS = (
    "",
    "acceptance",
    "lossless",
    "tokens/s",
    "accepted length",
    "nodes",
    "over AR",
    "over generate",
    "÷ length",
    "draft",
    "target",
    "accept",
    "other",
    "cache MB",
)
FIRST = "first token"
SPOKEN = ("real-time factor, whole", "first audio, streamed", "ended by itself")


def formatted(value: float | None, form: str, unit: str = "") -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{value:{form}}{unit}"


def line(row: dict) -> list[str]:
    """One table line; the time split is in per cent of the whole."""
    total = sum(row["seconds"].values())
    split = [f"{100 * row['seconds'][key] / total:.0f} %" for key in ("draft", "target", "accept", "other")]
    extra = []
    if "ended" in row:
        ended = f"{row['ended'].get('end', 0)} of {sum(row['ended'].values())}"
        extra = [f"{row['real_time_factor']:.2f}", f"{row['seconds_to_first_audio']:.2f} s", ended]
    if "seconds_to_first_token" in row:
        extra = [formatted(row["seconds_to_first_token"], ".3f", " s")]
    return [
        row["label"],
        row["acceptance"],
        "yes" if row["lossless"] else "**no**",
        f"{row['tokens_per_second']:.0f}",
        formatted(row["mean_acceptance_length"], ".2f"),
        f"{row['nodes_per_round']:.1f}",
        f"{row['speedup']:.2f}×",
        formatted(row["over_generate"], ".2f", "×"),
        formatted(row["efficiency"], ".2f"),
        *split,
        formatted(row["cache_bytes"] / 1e6 or None, ".1f"),
        *extra,
    ]


def joined(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    body = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *body])


def counts_table(rows: list[dict]) -> list[str]:
    """Operations and host reads of a round, by phase."""
    known = [row for row in rows if row["operations"]]
    if not known:
        return []
    phases = list(known[0]["operations"])
    heads = ["", *(f"operations, {phase}" for phase in phases), *(f"reads, {phase}" for phase in phases)]
    lines = [
        [
            row["label"],
            *(f"{row['operations'][phase]:.0f}" for phase in phases),
            *(f"{row['reads'][phase]:.1f}" for phase in phases),
        ]
        for row in known
    ]
    return ["Operations and host reads a round (uncompiled passes):", joined(heads, lines)]


def nodes_table(rows: list[dict]) -> list[str]:
    """Accepted lengths with equal numbers of draft nodes; in brackets how many a tree had that had fewer."""
    known = [row for row in rows if row["by_nodes"]]
    if not known:
        return []
    numbers = list(known[0]["by_nodes"])
    lines = []
    for row in known:
        cells = [(int(number), row["by_nodes"][number]) for number in numbers]
        fewer = [f" ({cell['nodes']:.1f})" if cell["nodes"] < 0.9 * number else "" for number, cell in cells]
        lines.append([row["label"], *(f"{c['mean_acceptance_length']:.2f}{few}" for (_, c), few in zip(cells, fewer))])
    heads = ["draft nodes", *numbers]
    return ["Accepted length by draft nodes a round (in brackets: nodes of smaller trees):", joined(heads, lines)]


def table(rows: list[dict]) -> str:
    """The table of speeds."""
    heads = HEADS + (SPOKEN if "ended" in rows[0] else (FIRST,) if "seconds_to_first_token" in rows[0] else ())
    return joined(heads, [line(row) for row in rows])


def markdown(results: dict) -> str:
    """The whole report."""
    origin = ", ".join(f"{key} {value}" for key, value in results["provenance"].items())
    parts = [f"# {results['suite']}, {results['model']}", origin]
    for shared in dict.fromkeys(row["setting"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["setting"] == shared]
        parts += [f"## {shared}", table(rows), *counts_table(rows), *nodes_table(rows)]
    if results["ablations"]:
        parts += [f"## Ablations, {results['ablations'][0]['dtype']}, batch 1", table(results["ablations"])]
    if results["growth"]:
        lines = ["| grid | drafter | rounds | ms per round | of it ours | cache MB |", "|---|---|---|---|---|---|"]
        for line in results["growth"]:
            lines.append(
                f"| {line['side']}×{line['side']} | {line['drafter']} | {line['rounds']} | "
                f"{line['ms_per_round']:.2f} "
                f"| {line['ours_ms_per_round']:.2f} | {line['cache_bytes'] / 1e6:.1f} |"
            )
        parts += ["## Growth with tokens, random weights, bf16, guidance 2", "\n".join(lines)]
    if results["memory"]:
        lines = ["| drafter | peak MB | over AR |", "|---|---|---|"]
        lines += [
            f"| {line['drafter']} | {line['peak_bytes'] / 1e6:.0f} | {line['over_ar']:.2f}× |"
            for line in results["memory"]
        ]
        parts += ["## Peak memory, one picture, bf16, a process each", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def plot(results: dict, path: Path) -> None:
    """Speed-up of every entrant of the first setting, with its mean acceptance length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shared = results["rows"][0]["setting"]
    rows = [row for row in results["rows"] if row["setting"] == shared]
    figure, axes = pyplot.subplots(figsize=(8, 0.45 * len(rows) + 1.2))
    labels = [row["label"] for row in rows]
    axes.barh(
        labels, [row["mean_acceptance_length"] or 0 for row in rows], color="#d8dee9", label="mean acceptance length"
    )
    axes.barh(
        labels,
        [row["speedup"] for row in rows],
        height=0.45,
        color=["#2a6f97" if row["lossless"] else "#e76f51" for row in rows],
        label="speed-up over AR",
    )
    for at, row in enumerate(rows):
        axes.text(row["speedup"] + 0.05, at, f"{row['speedup']:.2f}×", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.6)
    axes.set_title(f"{results['model']}, {shared}", fontsize=10)
    axes.legend(fontsize=8)
    figure.tight_layout()
    write_atomically(path, partial(figure.savefig, dpi=130, format="png"))
    pyplot.close(figure)


def save(out: Path, name: str, results: dict, text: str) -> None:
    """`results` as `name`.json and `text` as `name`.md in `out`, each written whole or not at all."""
    for kind, content in (("json", json.dumps(results, indent=1) + "\n"), ("md", text)):
        write_atomically(out / f"{name}.{kind}", partial(Path.write_text, data=content))


def write(out: Path, results: dict) -> None:
    """`results.json`, `results.md` and `results.png` in `out`, each written whole or not at all."""
    save(out, "results", results, markdown(results))
    plot(results, out / "results.png")
