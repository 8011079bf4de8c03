"""Results on prompts of one's own as JSON, as Markdown tables and as a plot, with intervals and accepted lengths."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mmspec.bench import report
from mmspec.bench.intervals import LEVEL, RESAMPLES
from mmspec.bench.report import formatted
from mmspec.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEADS = (
    "",
    "lossless",
    "equal to AR",
    "tokens/s",
    "over AR",
    "over generate",
    "accepted length",
    "÷ length",
    "nodes a round",
    "draft",
    "target",
    "accept",
    "other",
)
# How many columns the tables of accepted lengths have; all are in the JSON.
COLUMNS = 8


def with_interval(value: float, interval: Sequence[float] | None, unit: str = "") -> str:
    """A number and its interval, if it has one."""
    return f"{value:.2f}{unit}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def line(row: dict) -> list[str]:
    """One table line; the time split is in per cent of the whole."""
    total = sum(row["seconds"].values())
    return [
        row["label"] + (" (chains only)" if row["chains_only"] else ""),
        "yes" if row["lossless"] else "**no**",
        "–" if row["equal"] is None else f"{row['equal']} of {len(row['prompts'])}",
        f"{row['tokens_per_second']:.0f}",
        with_interval(row["speedup"], row["speedup_interval"], "×"),
        formatted(row["over_generate"], ".2f", "×"),
        with_interval(row["mean_acceptance_length"], row["mean_acceptance_length_interval"]),
        formatted(row["efficiency"], ".2f"),
        formatted(row["nodes_per_round"], ".1f"),
        *(f"{100 * row['seconds'][key] / total:.0f} %" for key in ("draft", "target", "accept", "other")),
    ]


def shares_of(row: dict) -> dict[int, float]:
    """How many tokens rounds commit, and the share of the rounds that do."""
    count = max(1, sum(row["lengths"].values()))
    return {int(length): rounds / count for length, rounds in row["lengths"].items()}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *body])


def drafted(rows: Sequence[dict]) -> list[dict]:
    """The rows of drafters whose accepted lengths are known."""
    return [row for row in rows if row["lengths"] and row["drafter"] not in ("none", "transformers")]


def depth_tables(rows: Sequence[dict]) -> list[str]:
    """How many tokens rounds commit, and how deep drafts are accepted, in per cent of the rounds."""
    deepest = max((len(row["accepted_by_depth"]) for row in rows), default=0)
    if not deepest:
        return []
    depths = range(1, min(deepest, COLUMNS) + 1)
    cut = deepest > COLUMNS
    by_length = []
    for row in rows:
        shares = shares_of(row)
        rest = [sum(share for length, share in shares.items() if length > COLUMNS)] if cut else []
        last = [] if cut else [shares.get(deepest + 1, 0.0)]
        numbers = [*(shares.get(depth, 0.0) for depth in depths), *rest, *last]
        by_length.append([row["label"], *(f"{100 * share:.0f} %" for share in numbers)])
    ends = f"{COLUMNS + 1} or more" if cut else str(deepest + 1)
    by_depth = [
        [
            row["label"],
            *(f"{100 * share:.0f} %" for share in (row["accepted_by_depth"] + [0.0] * deepest)[: len(depths)]),
        ]
        for row in rows
    ]
    return [
        "Rounds by the tokens that they commit, the bonus token included:",
        table(["tokens", *map(str, depths), ends], by_length),
        "Rounds that accept this many draft tokens or more:",
        table(["draft tokens", *map(str, depths)], by_depth),
    ]


def markdown(results: dict) -> str:
    """The whole report."""
    count = len(results["prompts"])
    origin = ", ".join(f"{key} {value}" for key, value in results["provenance"].items())
    said = (
        f"{count} prompt{'s' if count > 1 else ''}, each decoded once by everyone, in turns. Brackets are "
        f"{100 * LEVEL:.0f} % intervals over prompts (percentile bootstrap, {RESAMPLES} resamples), which few prompts "
        "make too narrow. The first token is a round of its own in accepted lengths, and is left out of the tables of "
        "rounds. `generate` samples with another noise, and so other tokens."
    )
    parts = [f"# {results['suite']}, {results['model']}, {results['task']}", origin, said]
    for setting in dict.fromkeys(row["setting"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["setting"] == setting]
        missing = [entry for entry in results["missing"] if entry["setting"] == setting]
        dashes = [[entry["label"], *["–"] * (len(HEADS) - 1)] for entry in missing]
        parts += [f"## {setting}", table(HEADS, [*map(line, rows), *dashes])]
        parts += [f"{entry['label']}: {entry['why']}." for entry in missing]
        parts += [*depth_tables(drafted(rows)), *report.nodes_table(rows)]
    return "\n\n".join(parts) + "\n"


def draw_speeds(axes: "Axes", rows: Sequence[dict], title: str) -> None:
    """Bars of the speed-up, with its interval, over those of the mean acceptance length."""
    labels = [row["label"] for row in rows]
    axes.barh(labels, [row["mean_acceptance_length"] for row in rows], color="#d8dee9", label="mean acceptance length")
    axes.barh(labels, [row["speedup"] for row in rows], height=0.45, color="#2a6f97", label="speed-up over AR")
    for at, row in enumerate(rows):
        low, high = row["speedup_interval"] or (row["speedup"],) * 2
        axes.plot([low, high], [at, at], color="#e76f51", linewidth=1.5)
        axes.text(max(high, row["speedup"]) + 0.05, at, f"{row['speedup']:.2f}×", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.6)
    axes.tick_params(labelsize=8)
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=7)


def draw_lengths(axes: Sequence["Axes"], rows: Sequence[dict], longest: int) -> None:
    """A histogram for each drafter: the share of rounds that commit so many tokens."""
    from matplotlib.ticker import MaxNLocator

    for panel, row in zip(axes, rows):
        shares = shares_of(row)
        panel.bar(list(shares), list(shares.values()), color="#2a6f97", width=0.9)
        panel.set_xlim(0.4, longest + 0.6)
        panel.set_ylim(0, 1)
        panel.set_yticks([0, 1])
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.tick_params(labelsize=6)
        panel.text(0.98, 0.9, row["label"], transform=panel.transAxes, ha="right", va="top", fontsize=7)
    axes[0].set_title("share of rounds by tokens committed", fontsize=9)


def draw_depths(axes: "Axes", rows: Sequence[dict]) -> None:
    """A line for each drafter: the share of rounds that accept so many draft tokens or more."""
    from matplotlib.ticker import MaxNLocator

    for row in rows:
        shares = row["accepted_by_depth"]
        axes.plot(range(1, len(shares) + 1), shares, marker="o", markersize=3, label=row["label"])
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=7)
    axes.set_title("share of rounds by draft tokens accepted, or more", fontsize=9)
    axes.legend(fontsize=7)


def plot(results: dict, path: Path) -> None:
    """Three panels for each setting: speed, a histogram of accepted lengths by drafter, acceptance by depth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings = list(dict.fromkeys(row["setting"] for row in results["rows"]))
    by_setting = [[row for row in results["rows"] if row["setting"] == setting] for setting in settings]
    heights = [max(2.6, 0.45 * len(rows) + 1.2) for rows in by_setting]
    figure = pyplot.figure(figsize=(14, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(settings), 3, height_ratios=heights, width_ratios=(1.3, 1, 1))
    for at, (setting, rows) in enumerate(zip(settings, by_setting)):
        draw_speeds(figure.add_subplot(grid[at, 0]), rows, f"{results['model']}, {setting}")
        if known := drafted(rows):
            panels = list(grid[at, 1].subgridspec(len(known), 1).subplots(sharex=True, squeeze=False)[:, 0])
            draw_lengths(panels, known, max(max(shares_of(row), default=1) for row in known))
            draw_depths(figure.add_subplot(grid[at, 2]), known)
    write_atomically(path, partial(figure.savefig, dpi=110, format="png"))
    pyplot.close(figure)


def write(out: Path, results: dict) -> None:
    """`results.json`, `results.md` and `results.png` in `out`, each written whole or not at all."""
    report.save(out, "results", results, markdown(results))
    plot(results, out / "results.png")
