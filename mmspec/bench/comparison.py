"""`mmspec bench --compare A.json B.json`: two results side by side, row by row."""

import json
from collections.abc import Sequence
from pathlib import Path

from mmspec.bench.intervals import interval
from mmspec.bench.own_report import table, with_interval
from mmspec.bench.report import formatted
from mmspec.errors import MmspecError

# What tells the rows of one run apart, as far as both runs say it.
KEYS = ("task", "dtype", "batch", "guidance", "temperature", "label")

HEADS = (
    "",
    "tokens/s, A",
    "B",
    "B/A",
    "speed-up, A",
    "B",
    "accepted length, A",
    "B",
)


def read_results(file: Path) -> dict:
    """What `mmspec bench` has written. Raises MmspecError for any other file."""
    needed = ("label", "dtype", "tokens_per_second", "speedup", "mean_acceptance_length")
    try:
        results = json.loads(file.read_text())
        rows = results["rows"]
        complete = bool(rows) and all(name in row for row in rows for name in needed) and "model" in results
        results["provenance"].get("device")
    except OSError as error:
        raise MmspecError(
            f"cannot read {file}: {error.strerror or error}; give a results.json of mmspec bench"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise MmspecError(f"{file} holds no results of mmspec bench: give two files results.json that it has written")
    return results


def differences(first: dict, second: dict) -> list[str]:
    """What makes two runs unlike, beside what is to be compared."""
    pairs: list[tuple[str, object, object]] = [("models", first["model"], second["model"])]
    dtypes = [sorted({row["dtype"] for row in run["rows"]}) for run in (first, second)]
    pairs.append(("dtypes", dtypes[0], dtypes[1]))
    for name in ("device", "processor", "threads", "torch", "transformers"):
        pairs.append((name, first["provenance"].get(name), second["provenance"].get(name)))
    said = [f"{name} differ: {shown(one)} and {shown(other)}" for name, one, other in pairs if one != other]
    before, after = (set(prompt_keys(run)) for run in (first, second))
    if before != after:
        common = len(before & after)
        said.append(f"prompts or seeds differ: A has {len(before)}, B {len(after)}, and {common} are the same")
    return said


def shown(value: object) -> str:
    """A value for a warning."""
    return ", ".join(value) if isinstance(value, list) else str(value)


def prompt_keys(results: dict) -> list[tuple]:
    """What is the same where a prompt and its seed are; none for a suite, which keeps nothing by prompt."""
    return [(prompt["id"], prompt["seed"]) for prompt in results.get("prompts", [])]


def match(first: dict, second: dict) -> tuple[tuple[str, ...], list[tuple[dict, dict]]]:
    """By what rows are told apart, and the pairs of them that are in both.

    One dtype in each is no difference between rows, but between runs.
    """
    runs = first["rows"], second["rows"]
    names = [name for name in KEYS if all(name in row for rows in runs for row in rows)]
    if all(len({row["dtype"] for row in rows}) == 1 for rows in runs):
        names.remove("dtype")
    others = {tuple(row[name] for name in names): row for row in reversed(runs[1])}
    keys = [tuple(row[name] for name in names) for row in runs[0]]
    return tuple(names), [(row, others[key]) for row, key in zip(runs[0], keys) if key in others]


def ratio(first: dict, second: dict, before: list[tuple], after: list[tuple]) -> str:
    """Tokens a second, B over A: of the prompts that are in both, with an interval over them, where there are any."""
    whole = second["tokens_per_second"] / first["tokens_per_second"]
    common = [key for key in before if key in after]
    if not common or "prompts" not in first or "prompts" not in second:
        return with_interval(whole, None, "×")
    one, other = (dict(zip(keys, row["prompts"])) for keys, row in ((before, first), (after, second)))
    tokens = [[parts[key]["tokens"] for key in common] for parts in (one, other)]
    seconds = [[parts[key]["seconds"] for key in common] for parts in (one, other)]
    value = sum(tokens[1]) * sum(seconds[0]) / (sum(seconds[1]) * sum(tokens[0]))
    return with_interval(value, interval([tokens[1], seconds[0]], [seconds[1], tokens[0]]), "×")


def markdown(first: dict, second: dict, paths: Sequence[Path]) -> str:
    """Both runs row by row. Raises MmspecError if they have no row in common."""
    names, pairs = match(first, second)
    if not pairs:
        raise MmspecError(
            f"{paths[0]} and {paths[1]} have no row in common: rows are the same where {', '.join(names)} are; give "
            "runs of the same drafters in the same settings"
        )
    before, after = prompt_keys(first), prompt_keys(second)
    parts = [
        "\n".join(
            f"{letter}: {path}, {run['suite']}, {run['model']}, commit {run['provenance'].get('commit') or 'unknown'}"
            for letter, path, run in zip("AB", paths, (first, second))
        )
    ]
    if before and after:
        parts.append("B/A is of the prompts that both have; brackets are 95 % intervals over them.")
    shared = [name for name in names if name != "label"]
    for setting in dict.fromkeys(tuple(row[name] for name in shared) for row, _ in pairs):
        lines = [
            [
                one["label"],
                f"{one['tokens_per_second']:.0f}",
                f"{other['tokens_per_second']:.0f}",
                ratio(one, other, before, after),
                *(f"{row['speedup']:.2f}×" for row in (one, other)),
                *(formatted(row["mean_acceptance_length"], ".2f") for row in (one, other)),
            ]
            for one, other in pairs
            if tuple(one[name] for name in shared) == setting
        ]
        parts += ["## " + ", ".join(f"{name} {value}" for name, value in zip(shared, setting)), table(HEADS, lines)]
    for letter, run, position in (("A", first, 0), ("B", second, 1)):
        common = {id(pair[position]) for pair in pairs}
        alone = dict.fromkeys(row["label"] for row in run["rows"] if id(row) not in common)
        parts += [f"In {letter} alone: {', '.join(alone)}."] if alone else []
    return "\n\n".join(parts) + "\n"
