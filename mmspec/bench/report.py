"""Results as JSON, as a Markdown table and as a plot."""

import json
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
    "speed-up",
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
        formatted(row["efficiency"], ".2f"),
        *split,
        formatted(row["cache_bytes"] / 1e6 or None, ".1f"),
        *extra,
    ]


def table(rows: list[dict]) -> str:
    """A Markdown table."""
    heads = HEADS + (SPOKEN if "ended" in rows[0] else (FIRST,) if "seconds_to_first_token" in rows[0] else ())
    body = ["| " + " | ".join(line(row)) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *body])


def markdown(results: dict) -> str:
    """The whole report."""
    origin = ", ".join(f"{key} {value}" for key, value in results["provenance"].items())
    parts = [f"# {results['suite']}, {results['model']}", origin]
    for shared in dict.fromkeys(row["setting"] for row in results["rows"]):
        parts += [f"## {shared}", table([row for row in results["rows"] if row["setting"] == shared])]
    if results["ablations"]:
        parts += [f"## Ablations, {results['ablations'][0]['dtype']}, batch 1", table(results["ablations"])]
    if results["growth"]:
        rows = ["| grid | drafter | rounds | ms per round | of it ours | cache MB |", "|---|---|---|---|---|---|"]
        for line in results["growth"]:
            rows.append(
                f"| {line['side']}×{line['side']} | {line['drafter']} | {line['rounds']} | "
                f"{line['ms_per_round']:.2f} "
                f"| {line['ours_ms_per_round']:.2f} | {line['cache_bytes'] / 1e6:.1f} |"
            )
        parts += ["## Growth with tokens, random weights, bf16, guidance 2", "\n".join(rows)]
    if results["memory"]:
        rows = ["| drafter | peak MB | over AR |", "|---|---|---|"]
        rows += [
            f"| {line['drafter']} | {line['peak_bytes'] / 1e6:.0f} | {line['over_ar']:.2f}× |"
            for line in results["memory"]
        ]
        parts += ["## Peak memory, one picture, bf16, a process each", "\n".join(rows)]
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
