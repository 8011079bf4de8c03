"""What the benchmark suites share: cases, interleaved runs, result rows, and the sweep over dtypes and batch sizes."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import track

from mmspec import drafters
from mmspec.bench import report
from mmspec.drafters.base import Drafter
from mmspec.engine.loop import Generation, Stop, stream
from mmspec.engine.packed import unpacked
from mmspec.engine.stats import GenerationStats
from mmspec.targets.causal import CausalTarget, Prompts
from mmspec.versions import provenance

Result = TypeVar("Result")

# Called as (prompts, maximum number of new tokens, seed of the first row); row i uses seed + i. Returns one result.
Runner = Callable[[Prompts, int, int], Result]


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table: a drafter with its settings, and an acceptance rule.

    A case that is not `required` is left out where a model has no such drafter.
    """

    label: str
    drafter: str
    rule: str = "exact"
    options: dict = field(default_factory=dict)
    required: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """What a caller measures in the place of a suite's own prompts, cases and temperatures, as far as it is given."""

    prompts: tuple[dict, ...] = ()
    drafters: tuple[str, ...] = ()
    temperatures: tuple[float, ...] = ()

    def cases(self, own: Sequence[Case]) -> tuple[Case, ...]:
        """Plain decoding and the chosen drafters by name; a suite's own cases if none are chosen."""
        if not self.drafters:
            return tuple(own)
        plain = next(case for case in own if case.drafter == "none")
        return (plain, *(Case(name, name, required=True) for name in self.drafters if name != "none"))


NOT_SAMPLED: dict = dict(do_sample=False)


class TransformersBaseline:
    """A runner that samples with `transformers.generate`, and with transformers' own classifier-free guidance.

    `end` is the token of the loop that ends a row, or None if only the length does. The time of the prefill is included
    in `target` seconds of the statistics.
    """

    label = "transformers.generate"

    def __init__(self, target: CausalTarget, end: int | None = None, temperature: float = 1.0):
        self.target, self.temperature = target, temperature
        self.ends = {} if end is None else dict.fromkeys(("eos_token_id", "pad_token_id"), int(target.vocabulary[end]))

    def __call__(self, prompts: Prompts, length: int, seed: int) -> Generation:
        torch.manual_seed(seed)
        ids = torch.tensor(prompts.conditional, device=self.target.device)
        guided = (
            {}
            if prompts.unconditional is None
            else {
                "guidance_scale": prompts.guidance,
                "negative_prompt_ids": torch.tensor(prompts.unconditional, device=ids.device),
            }
        )
        sampling_kwargs = dict(
            **(dict(do_sample=True, top_k=0, temperature=self.temperature) if self.temperature else NOT_SAMPLED),
            logits_processor=[self.target.generate_processor(ids.shape[1])],
        )
        inputs = dict(inputs=ids, attention_mask=torch.ones_like(ids), max_new_tokens=length)
        numbers = {model_id: token for token, model_id in enumerate(self.target.vocabulary.tolist())}
        with unpacked(self.target.decoder):
            began = perf_counter()
            out = self.target.own_ids(**inputs, **sampling_kwargs, **guided, **self.ends)
            tokens = [[numbers.get(model_id, -1 - model_id) for model_id in row] for row in out.tolist()]
            total = perf_counter() - began
        runs = [[1] * len(row) for row in tokens]
        return Generation(
            tokens,
            GenerationStats("transformers", "sampling", target=total, total=total, nodes=len(tokens[0]), runs=runs),
        )


def choose_min_query_len(target: CausalTarget, prompts: Prompts, length: int) -> None:
    """Set `CausalTarget.min_query_len` to 1, 2 or 4, whichever makes plain decoding fastest on this machine.

    Some kernels take longer for a pass over one node than for a pass over four.
    """

    def seconds(nodes: int) -> float:
        target.min_query_len, stats = nodes, GenerationStats()
        for _ in islice(stream(target, prompts, len(prompts.conditional), Stop(length), stats=stats), 32):
            pass
        return (stats.total - stats.prefill) / stats.rounds

    widths = (1, 2, 4)
    turns = [[seconds(nodes) for nodes in widths] for _ in range(5)]
    target.min_query_len = min(zip(map(min, zip(*turns)), widths))[1]


def build_runners(
    cases: Sequence[Case],
    folder: Path,
    target: CausalTarget,
    prompts: Prompts,
    length: int,
    run: Callable[[Drafter, str, Prompts, int, int], Result],
) -> list[tuple[str, Runner[Result]]]:
    """(label, runner) of each case that is required, or whose drafter needs no training or has weights in `folder`.

    A runner is `run` with the case's drafter and acceptance rule as its first two arguments. `prompts` and `length` are
    those after which the cost of a target pass is measured.
    """
    usable: list[tuple[str, Runner[Result]]] = []
    for case in cases:
        if case.required or case.drafter in drafters.usable(folder):
            drafter = drafters.load(case.drafter, folder, target, prompts, length, **case.options)
            usable.append((case.label, partial(run, drafter, case.rule)))
    return usable


def run_in_turns(
    runners: Sequence[tuple[str, Runner[Result]]],
    job: Callable[[int], tuple[Prompts, int]],
    turns: int,
    batch: int,
    seed: int,
    title: str,
) -> dict[str, list[Result]]:
    """Run all runners on the same prompts and seeds, interleaved, and return the results of each by label.

    Each of the `turns` runs every runner once, so that slow phases of the machine affect all of them alike. Before
    that, every runner is warmed up on at most 24 tokens. `job(turn)` returns the prompts of a turn and the maximum
    number of new tokens; `batch` is the number of rows, by which the seed advances from turn to turn.
    """
    prompts, length = job(0)
    for _, runner in runners:
        runner(prompts, min(24, length), seed)
    results: dict[str, list[Result]] = {label: [] for label, _ in runners}
    for turn in track(range(turns), title, console=Console(stderr=True)):
        for label, runner in runners:
            results[label].append(runner(*job(turn), seed + turn * batch))
    return results


def result_row(
    label: str,
    setting: str,
    runs: Sequence[GenerationStats],
    dtype: str,
    device: str,
    batch: int,
    guidance: float = 1.0,
) -> dict:
    """One row of the results table: the runs of one case, with tokens and seconds summed over them.

    Rows with the same `setting` (dtype, batch size, ...) are printed in one table, of which it is the title. Seconds of
    the prefill count as "target".
    """
    total = sum(stats.total for stats in runs)
    tokens = sum(stats.tokens for stats in runs)
    split = {key: sum(stats.seconds[key] for stats in runs) for key in ("draft", "target", "accept", "other")}
    return {
        "label": label,
        "setting": setting,
        "drafter": runs[0].drafter,
        "acceptance": runs[0].acceptance,
        "lossless": runs[0].lossless,
        "dtype": dtype,
        "device": device,
        "batch": batch,
        "guidance": guidance,
        "tokens": tokens,
        "tokens_per_second": tokens / total,
        "mean_acceptance_length": tokens / sum(len(runs) for stats in runs for runs in stats.runs),
        "nodes_per_round": sum(stats.nodes for stats in runs) / max(1, sum(stats.rounds for stats in runs)),
        "cache_bytes": max(stats.cache_bytes for stats in runs),
        "seconds": split,
    }


def compare(rows: list[dict]) -> list[dict]:
    """Add `speedup` and `efficiency` to the rows of one setting, in place, and return them.

    `speedup` is relative to the row with drafter "none". `efficiency` is `speedup` / `mean_acceptance_length`.
    """
    base = next(line["tokens_per_second"] for line in rows if line["drafter"] == "none")
    for line in rows:
        line["speedup"] = line["tokens_per_second"] / base
        length = line["mean_acceptance_length"]
        line["efficiency"] = line["speedup"] / length if length else None
    return rows


def sweep(
    results: dict,
    out: Path,
    dtypes: Sequence[str],
    batches: Sequence[int],
    run_setting: Callable[[str, int], list[dict]],
) -> None:
    """`run_setting(dtype, batch)` for every setting; the report is written anew after each."""
    for dtype in dtypes:
        for batch in batches:
            results["rows"] += run_setting(dtype, batch)
            report.write(out, results)


def new_results(suite: str, model: str, device: str) -> dict:
    """A suite's results before its first row."""
    origin = {"suite": suite, "model": model, "provenance": provenance(device)}
    return origin | {"rows": [], "ablations": [], "growth": [], "memory": []}


def print_location(results: dict, out: Path) -> None:
    """One line of JSON on standard output: where the report is, and the fastest lossless case."""
    best = max(results["rows"], key=lambda line: line["speedup"] * line["lossless"])
    print(json.dumps({"written": str(out), "best": best["label"]}))
