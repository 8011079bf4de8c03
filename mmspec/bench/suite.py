"""What the benchmark suites share: cases, interleaved runs, result rows, and the sweep over dtypes and batch sizes."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Protocol, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from transformers import CompileConfig

from mmspec import drafters
from mmspec.bench import report
from mmspec.bench.counting import count_rounds, length_by_nodes, mean_counts, uncompiled
from mmspec.drafters.base import Drafter
from mmspec.engine.compiled import SEQUENCES
from mmspec.engine.loop import Generation, Stop, stream
from mmspec.engine.packed import unpacked
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.stats import GenerationStats
from mmspec.targets.causal import CausalTarget, Prompts
from mmspec.versions import provenance

GENERATE = "transformers.generate"


class Measured(Protocol):
    """The result of a call, with what it cost."""

    @property
    def stats(self) -> GenerationStats: ...


Result = TypeVar("Result")
Costed = TypeVar("Costed", bound=Measured)

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
    """What a caller measures in the place of a suite's own prompts, cases and temperatures, as far as it is given.

    With `compiled` passes are graphs, and plain decoding and `generate` are measured uncompiled, too. `nodes` are the
    numbers of draft nodes that all drafters' accepted lengths are compared at.
    """

    prompts: tuple[dict, ...] = ()
    drafters: tuple[str, ...] = ()
    temperatures: tuple[float, ...] = ()
    compiled: bool = False
    nodes: tuple[int, ...] = ()

    def cases(self, own: Sequence[Case]) -> tuple[Case, ...]:
        """Plain decoding and the chosen drafters by name; a suite's own cases if none are chosen."""
        if not self.drafters:
            return tuple(own)
        plain = next(case for case in own if case.drafter == "none")
        return (plain, *(Case(name, name, required=True) for name in self.drafters if name != "none"))


NOT_SAMPLED: dict = dict(do_sample=False)


def compile_options() -> dict[str, object]:
    """Options by which transformers compiles the passes of `generate`."""
    compiling = CompileConfig(fullgraph=False, mode="default")
    compiling._compile_all_devices = True  # transformers compiles on GPUs alone unless told so
    return {"cache_implementation": "static", "compile_config": compiling}


class TransformersBaseline:
    """A runner that samples with `transformers.generate`, and with transformers' own classifier-free guidance.

    With `options` that compile its passes, those of the unconditional branch of guidance stay as they are.

    `end` is the token of the loop that ends a row, or None if only the length does. The time of the prefill is included
    in `target` seconds of the statistics.
    """

    label = GENERATE

    def __init__(
        self,
        target: CausalTarget,
        end: int | None = None,
        temperature: float = 1.0,
        options: dict[str, object] | None = None,
    ):
        self.target, self.temperature, self.options = target, temperature, options or {}
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
            out = self.target.own_ids(**inputs, **sampling_kwargs, **guided, **self.ends, **self.options)
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
    with uncompiled(target):
        turns = [[seconds(nodes) for nodes in widths] for _ in range(5)]
    target.min_query_len = min(zip(map(min, zip(*turns)), widths))[1]


def by_generate(runner_of: Callable[[dict], Runner[Result]], compiled: bool) -> list[tuple[str, Runner[Result]]]:
    """`generate` as a runner made with options of its own, and again with those that compile it."""
    more = [(f"{GENERATE}, compiled", runner_of(compile_options()))] if compiled else []
    return [(GENERATE, runner_of({})), *more]


def can_compile(choice: Choice, prompts: Prompts) -> bool:
    """Whether these rows go through compiled graphs: larger batches run uncompiled."""
    return choice.compiled and len(prompts.branches) <= SEQUENCES


def passes_of(target: CausalTarget) -> str:
    """How passes run, for a title."""
    plain = f"passes of {target.min_query_len} nodes or more"
    return f"compiled passes, uncompiled {plain}" if target.compiled else plain


@dataclass(frozen=True, slots=True)
class Setting:
    """What all rows of one table share.

    `job(turn)` returns the prompts of a turn and the maximum number of new tokens, `stop(length)` what ends its rows;
    each of the `turns` has `batch` rows. `nodes` are those of the table of accepted lengths by nodes.
    """

    target: CausalTarget
    folder: Path
    job: Callable[[int], tuple[Prompts, int]]
    stop: Callable[[int], Stop]
    turns: int
    batch: int
    seed: int
    dtype: str
    sampling: SamplingOptions
    title: str
    nodes: tuple[int, ...] = ()


def measure(
    setting: Setting,
    cases: Sequence[Case],
    run: Callable[[Drafter, str, Prompts, int, int], Costed],
    foreign: Sequence[tuple[str, Runner[Costed]]],
    fields: Callable[[str, Sequence[Costed]], dict],
) -> list[dict]:
    """The rows of one table: cases that are required, or whose drafters need no training or have weights.

    `run` decodes with a case's drafter and acceptance rule, `foreign` runners come after plain decoding, and
    `fields(label, results)` are a suite's own. Operations, reads and lengths by nodes are of uncompiled rounds that are
    not timed.
    """
    target, (prompts, length) = setting.target, setting.job(0)
    usable = [case for case in cases if case.required or case.drafter in drafters.usable(setting.folder)]
    ready = {
        case.label: (case, drafters.load(case.drafter, setting.folder, target, prompts, length, **case.options))
        for case in usable
    }
    loops: list[tuple[str, Runner[Costed]]] = []
    for label, (case, drafter) in ready.items():
        loop = partial(run, drafter, case.rule)
        if target.compiled and case.drafter == "none":
            loops += [(label, partial(run_uncompiled, target, loop)), (f"{label}, compiled", loop)]
        else:
            loops.append((label, loop))
    plain = 2 if target.compiled else 1
    runners = [*loops[:plain], *foreign, *loops[plain:]]
    turns, batch, seed = setting.turns, setting.batch, setting.seed
    if target.compiled:  # graphs are made for every length before anything counts
        run_in_turns(runners, setting.job, turns, batch, seed, "compiling")
    rows = []
    learning = [drafter for _, drafter in ready.values()]
    for label, results in run_in_turns(runners, setting.job, turns, batch, seed, setting.title, learning).items():
        stats, device = [result.stats for result in results], str(target.device)
        row = result_row(label, setting.title, stats, setting.dtype, device, batch, prompts.guidance)
        row |= (
            {"temperature": setting.sampling.temperature} | fields(label, results) | counted(setting, ready.get(label))
        )
        row["compiled"] = label.endswith(", compiled") or (target.compiled and label in ready and label != loops[0][0])
        rows.append(row)
    return compare(rows)


def run_uncompiled(target: CausalTarget, runner: Runner[Result], prompts: Prompts, length: int, seed: int) -> Result:
    """What a runner of the loop gives without compiled passes."""
    with uncompiled(target):
        return runner(prompts, length, seed)


def counted(setting: Setting, entrant: tuple[Case, Drafter] | None) -> dict:
    """Fields of a row that are counted: operations and reads of a round by phase, and lengths by nodes; None for what
    does not run on the loop, and for plain decoding, which has no nodes.
    """
    if entrant is None:
        return {"operations": None, "reads": None, "by_nodes": None}
    case, drafter = entrant
    jobs = [setting.job(turn) for turn in range(setting.turns)]
    ends = [(prompts, setting.stop(length)) for prompts, length in jobs]
    how: dict = dict(sampling=setting.sampling, rule=case.rule, seed=setting.seed)
    counts = mean_counts(count_rounds(setting.target, *ends[0], drafter, **how))
    if not setting.nodes or not drafter.max_nodes:
        return counts | {"by_nodes": None}
    return counts | {"by_nodes": length_by_nodes(setting.target, ends, drafter, setting.nodes, **how)}


def run_in_turns(
    runners: Sequence[tuple[str, Runner[Result]]],
    job: Callable[[int], tuple[Prompts, int]],
    turns: int,
    batch: int,
    seed: int,
    title: str,
    learning: Iterable[Drafter] = (),
) -> dict[str, list[Result]]:
    """Run all runners on the same prompts and seeds, interleaved, and return the results of each by label.

    Each of the `turns` runs every runner once, so that slow phases of the machine affect all of them alike. Before
    that, every runner is warmed up on at most 24 tokens, which the drafters `learning` forget. `job(turn)` returns the
    prompts of a turn and the maximum number of new tokens; `batch` is the number of rows, by which the seed advances
    from turn to turn.
    """
    prompts, length = job(0)
    for _, runner in runners:
        runner(prompts, min(24, length), seed)
    for drafter in learning:
        drafter.forget()
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
    """Add `speedup`, `over_generate` and `efficiency` to the rows of one setting, in place, and return them.

    `speedup` is relative to the fastest row with drafter "none", `over_generate` to the fastest of
    `transformers.generate` without drafts, None where there is none. `efficiency` is `speedup` /
    `mean_acceptance_length`.
    """
    base = max(line["tokens_per_second"] for line in rows if line["drafter"] == "none")
    theirs = [line["tokens_per_second"] for line in rows if line["label"].startswith(GENERATE)]
    for line in rows:
        line["speedup"] = line["tokens_per_second"] / base
        line["over_generate"] = line["tokens_per_second"] / max(theirs) if theirs else None
        length = line["mean_acceptance_length"]
        line["efficiency"] = line["speedup"] / length if length else None
    return rows


def sweep(
    results: dict,
    out: Path,
    dtypes: Sequence[str],
    batches: Sequence[int],
    choice: Choice,
    run_setting: Callable[[str, int, Choice], list[dict]],
) -> None:
    """`run_setting(dtype, batch, choice)` for every setting; the report is written anew after each.

    Accepted lengths by nodes are those of the first dtype and batch: they do not depend on these.
    """
    for dtype in dtypes:
        for batch in batches:
            results["rows"] += run_setting(dtype, batch, choice)
            choice = replace(choice, nodes=())
            report.write(out, results)


def new_results(suite: str, model: str, device: str) -> dict:
    """A suite's results before its first row."""
    origin = {"suite": suite, "model": model, "provenance": provenance(device)}
    return origin | {"rows": [], "ablations": [], "growth": [], "memory": []}


def print_location(results: dict, out: Path) -> None:
    """One line of JSON on standard output: where the report is, and the fastest lossless case."""
    best = max(results["rows"], key=lambda line: line["speedup"] * line["lossless"])
    print(json.dumps({"written": str(out), "best": best["label"]}))
