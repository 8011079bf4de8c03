"""`mmspec bench --model M --prompts FILE`: every drafter beside plain AR and transformers' own decoding, on prompts of
one's own, for every model that a pipeline serves.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import cast

import torch
from transformers import GenerationMixin, SuppressTokensLogitsProcessor

from mmspec import drafters, reference
from mmspec.bench import own_report
from mmspec.bench.counting import length_by_nodes
from mmspec.bench.intervals import interval
from mmspec.bench.suite import (
    GENERATE,
    Runner,
    choose_min_query_len,
    compare,
    compile_options,
    new_results,
    print_location,
    result_row,
    run_in_turns,
)
from mmspec.drafters.base import Drafter
from mmspec.drafters.model import ModelDrafter
from mmspec.engine.loop import Stop, generate
from mmspec.engine.packed import unpacked
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.stats import GenerationStats
from mmspec.errors import MmspecError, short
from mmspec.pipelines import pipeline, task_of
from mmspec.pipelines.base import Pipeline
from mmspec.pipelines.generation_config import NEUTRAL
from mmspec.prompts import pictures_of
from mmspec.targets.base import Prompts, Target

PLAIN = "AR, our loop"
LOOKUP, ASSISTED = "transformers, prompt lookup", "transformers, assisted by {}"
COMPILED = f"{GENERATE}, compiled"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one prompt got: the model's ids, what they cost, and in how many passes of the target.

    `lengths` says how many rounds committed how many tokens, without the first token, which no draft has a part in;
    None where transformers does not tell.
    """

    ids: list[int]
    stats: GenerationStats
    rounds: int
    lengths: Counter[int] | None


def decode(
    target: Target, sampling: SamplingOptions, stop: Stop, drafter: Drafter, prompts: Prompts, length: int, seed: int
) -> Answer:
    """By the loop."""
    end = replace(stop, length=length)
    generation = generate(target, prompts, 1, end, drafter, sampling=sampling, seeds=seed)
    prompt = torch.tensor(prompts.conditional[0], device=target.device)
    ids = target.model_ids(prompt, torch.tensor(generation.tokens[0], dtype=torch.long, device=target.device))
    runs = generation.stats.runs[0]
    return Answer(ids.tolist(), generation.stats, len(runs), Counter(runs[1:]))


class Transformers:
    """A runner by the model's own `generate`, with `options` that ask for drafts.

    Where `generate` cannot decode so it has no answers, and `failure` says why.
    """

    def __init__(
        self, target: Target, sampling: SamplingOptions, stop: Stop, prompts: Prompts, options: dict[str, object]
    ):
        self.target, self.sampling, self.stop, self.options = target, sampling, stop, options
        # Another noise makes it no slower, so that what it samples is measured too.
        self.failure = reference.why_not_comparable(target, prompts, replace(sampling, temperature=0.0))
        self.drafts = bool(options) and "compile_config" not in options
        if self.drafts and not self.failure:
            self.failure = why_not_assisted(target, prompts)
        self.passes = 0

    def __call__(self, prompts: Prompts, length: int, seed: int) -> Answer | None:
        if self.failure:
            return None
        torch.manual_seed(seed)
        sampling = self._without_media(prompts) if self.drafts else self.sampling
        end, self.passes = replace(self.stop, length=length), 0
        hook = self.target.model.register_forward_pre_hook(self._count) if self.drafts else None
        try:
            with unpacked(self.target.model):
                began = perf_counter()
                ids = reference.own_ids(self.target, prompts, end, sampling, self.options)
                total = perf_counter() - began
        except Exception as error:  # whatever a family's own code says of decoding that it was not written for
            self.failure = short(error)
            return None
        finally:
            if hook:
                hook.remove()
        count = len(ids)
        stats = GenerationStats("transformers", "sampling", target=total, total=total, nodes=count, runs=[[1] * count])
        if self.drafts:
            return Answer(ids, stats, self.passes, None)
        return Answer(ids, stats, count, Counter([1] * (count - 1)))

    def _count(self, *_: object) -> None:
        self.passes += 1

    def _without_media(self, prompts: Prompts) -> SamplingOptions:
        """Without ids that stand for pictures and sounds: copied out of the prompt they would be read as such, and
        fail.
        """
        ids = torch.tensor(prompts.conditional[0], device=self.target.device)
        media = ids[~self.target.is_text(ids)].unique().tolist()
        never = [SuppressTokensLogitsProcessor(media, device=str(ids.device))] if media else []
        return replace(self.sampling, logits_processor=[*self.sampling.logits_processor, *never])


def why_not_assisted(target: Target, prompts: Prompts) -> str:
    """Why transformers cannot decode with an assistant or by prompt lookup; "" if nothing is known against it."""
    if prompts.unconditional is not None:
        return "guidance keeps a cache of its own, in which rejected drafts would stay"
    if type(target.model).generate is not GenerationMixin.generate:
        return f"{type(target.model).__name__} has a generate of its own, which takes no drafts"
    return ""


def parameters_of(drafter: object) -> int:
    """How many numbers a drafter has learnt."""
    return sum(weight.numel() for weight in drafter.parameters()) if isinstance(drafter, torch.nn.Module) else 0


def labels_of(names: Sequence[str]) -> dict[str, str]:
    """What tables call drafters: names as they are, folders and hub ids by their last part where that is unique."""
    last = Counter(Path(name).name for name in names)
    return {name: Path(name).name if last[Path(name).name] == 1 else name for name in names}


def identity(row: dict) -> str:
    """Names a prompt and its pictures, whatever files these are in."""
    digests = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in pictures_of(row)]
    rest = {key: value for key, value in row.items() if key not in ("image", "images")}
    text = json.dumps([rest, digests], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def encode(pipe: Pipeline, rows: Sequence[dict], guidance: float, tokens: int | None) -> list[tuple[Prompts, Stop]]:
    """Each prompt alone, with its end. Raises MmspecError, which names the prompt, for one that is not read."""
    encoded = []
    for number, row in enumerate(rows, 1):
        try:
            prompts, stop = pipe.encode_examples([row])
        except MmspecError as error:
            raise MmspecError(f"prompt {number} ({row['prompt'][:40]!r}): {error}") from None
        stop = replace(stop, length=min(stop.length, tokens or stop.length))
        encoded.append((prompts.select(slice(0, 1), guidance), stop))
    return encoded


def prompt_fields(answer: Answer, plain: Answer, comparable: bool) -> dict:
    """What is kept of one prompt. The model's own `generate` may go on where plain decoding has noticed a stall."""
    stats, lengths = answer.stats, answer.lengths
    ids = answer.ids[: len(plain.ids)] if stats.drafter == "transformers" else answer.ids
    return {
        "tokens": stats.tokens,
        "seconds": stats.total,
        "rounds": answer.rounds,
        "lengths": None if lengths is None else {str(length): lengths[length] for length in sorted(lengths)},
        "equal": ids == plain.ids if comparable else None,
    }


def add_lengths(answers: Sequence[Answer]) -> dict:
    """Fields of a row: rounds by how many tokens they committed, and the share that accepts so many draft tokens or
    more; None where transformers does not tell.
    """
    known = [answer.lengths for answer in answers if answer.lengths is not None]
    if len(known) < len(answers):
        return {"lengths": None, "accepted_by_depth": None, "nodes_per_round": None}
    total = sum(known, Counter[int]())
    count = max(1, sum(total.values()))
    shares = [
        sum(total[length] for length in total if length > depth) / count for depth in range(1, max(total, default=1))
    ]
    return {"lengths": {str(length): total[length] for length in sorted(total)}, "accepted_by_depth": shares}


def own_row(row: dict, answers: Sequence[Answer], plain: Sequence[Answer], sampling: SamplingOptions) -> dict:
    """A row of the results with what is known by prompt, and of that what it says of all prompts together."""
    comparable = row["drafter"] != "transformers" or sampling.greedy
    parts = [prompt_fields(answer, base, comparable) for answer, base in zip(answers, plain, strict=True)]
    tokens, seconds, rounds = ([part[name] for part in parts] for name in ("tokens", "seconds", "rounds"))
    plain_tokens, plain_seconds = [base.stats.tokens for base in plain], [base.stats.total for base in plain]
    fields = {
        "temperature": sampling.temperature,
        "mean_acceptance_length": sum(tokens) / sum(rounds),
        "chains_only": answers[0].stats.chains_only,
        "equal": sum(part["equal"] for part in parts) if comparable else None,
        "speedup_interval": interval([tokens, plain_seconds], [seconds, plain_tokens]),
        "mean_acceptance_length_interval": interval([tokens], [rounds]),
    }
    return row | fields | add_lengths(answers) | {"prompts": parts}


def run_setting(
    pipe: Pipeline,
    encoded: Sequence[tuple[Prompts, Stop]],
    ready: dict[str, Drafter],
    sampling: SamplingOptions,
    title: str,
    dtype: str,
    seed: int,
    nodes: Sequence[int] = (),
) -> tuple[list[dict], list[dict]]:
    """All rows at one temperature, and those that transformers cannot give, with why. With `nodes` also the accepted
    lengths of each drafter with so many draft nodes a round.
    """
    target, (prompts, stop) = pipe.target, encoded[0]
    options: dict[str, dict] = {GENERATE: {}, LOOKUP: {"prompt_lookup_num_tokens": 10}}
    if target.compiled and prompts.unconditional is None:
        options[COMPILED] = compile_options()
    for label, drafter in ready.items():
        if isinstance(drafter, ModelDrafter):
            options[ASSISTED.format(label)] = {"assistant_model": drafter.model}
    foreign = {label: Transformers(target, sampling, stop, prompts, more) for label, more in options.items()}
    loop = partial(decode, target, sampling, stop)  # rows of a pipeline end alike, but for their length
    runners: list[tuple[str, Runner[Answer | None]]] = [
        (PLAIN, partial(loop, drafters.load("none", None, target))),
        *foreign.items(),
        *((label, partial(loop, drafter)) for label, drafter in ready.items()),
    ]

    def job(turn: int) -> tuple[Prompts, int]:
        return encoded[turn][0], encoded[turn][1].length

    if target.compiled:  # graphs are made for every length before anything counts
        run_in_turns(runners, job, len(encoded), 1, seed, "compiling")
    turns = run_in_turns(runners, job, len(encoded), 1, seed, title, ready.values())
    plain = [answer for answer in turns[PLAIN] if answer]
    missing = {label: runner.failure for label, runner in foreign.items() if runner.failure}
    rows = []
    for label, optional in turns.items():
        if label in missing:
            continue
        answers = [answer for answer in optional if answer]
        stats = [answer.stats for answer in answers]
        row = own_row(
            result_row(label, title, stats, dtype, str(target.device), 1, prompts.guidance), answers, plain, sampling
        )
        row["parameters"] = parameters_of(ready.get(label))
        equal = label in ready and nodes
        row["by_nodes"] = length_by_nodes(target, encoded, ready[label], nodes, sampling, seed=seed) if equal else None
        rows.append(row)
    return compare(rows), [{"setting": title, "label": label, "why": why} for label, why in missing.items()]


def title_of(dtype: str, sampling: SamplingOptions, guidance: float, target: Target) -> str:
    """What the rows of one table share."""
    names = ("repetition_penalty",) if sampling.greedy else tuple(NEUTRAL)
    chosen = [f"{name} {getattr(sampling, name):g}" for name in names if getattr(sampling, name) != NEUTRAL[name]]
    guided = [f"guidance {guidance:g}"] if guidance != 1 else []
    width = "compiled passes" if target.compiled else f"passes of {target.min_query_len} nodes or more"
    return ", ".join([dtype, f"T = {sampling.temperature:g}", *chosen, *guided, width])


def run(
    model: str,
    folder: Path,
    rows: Sequence[dict],
    out: Path,
    names: Sequence[str] = (),
    temperatures: Sequence[float] = (),
    dtypes: Sequence[str] = ("bf16",),
    device: str = "cpu",
    seed: int = 0,
    tokens: int | None = None,
    compiled: bool = False,
    nodes: Sequence[int] = (),
) -> Path:
    """Write `results.json`, `results.md` and `results.png` to `out`, anew after each setting, and return it.

    `rows` are prompts as `read_prompts` gives them, each of which is decoded once by everyone, with a seed of its own.
    Without `names` all drafters that the model has weights for are measured, and without `temperatures` it samples by
    its own defaults. `tokens` limits the length. `compiled` passes are graphs, and `generate` is measured compiled,
    too. For `nodes` see `run_setting`.
    """
    task = task_of(folder)
    if task != "image-text-to-text" and any(row.get("image") or row.get("images") for row in rows):
        raise MmspecError(f"{model} is a {task} model and reads no pictures: leave image out of the prompts")
    results = new_results("own prompts", model, device) | {"task": task, "missing": []}
    for dtype in dtypes:
        pipe = pipeline(task, folder, device=device, dtype=dtype, compile=compiled)
        target, settings = pipe.target, pipe.current_settings()
        guidance = cast(float, settings.get("guidance_scale", 1.0))
        voices = [{"voice": pipe.voices[i % len(pipe.voices)]} if pipe.voices else {} for i in range(len(rows))]
        lines = [voice | row for voice, row in zip(voices, rows, strict=True)]
        results["prompts"] = [
            {"id": identity(line), "prompt": line["prompt"], "seed": seed + i} for i, line in enumerate(lines)
        ]
        encoded = encode(pipe, lines, guidance, tokens)
        prompts, stop = encoded[0]
        if not compiled:
            choose_min_query_len(target, prompts, stop.length)
        chosen = [name for name in dict.fromkeys(names or drafters.usable(folder)) if name != "none"]
        ready = {
            label: drafters.load(name, folder, target, prompts, stop.length)
            for name, label in labels_of(chosen).items()
        }
        for temperature in dict.fromkeys(temperatures or (None,)):
            sampling = pipe.read_options({"temperature": temperature})[0]
            title = title_of(dtype, sampling, prompts.guidance, target)
            measured, missing = run_setting(pipe, encoded, ready, sampling, title, dtype, seed, nodes)
            results["rows"] += measured
            results["missing"] += missing
            own_report.write(out, results)
        del pipe, target, ready, encoded
        torch.cuda.empty_cache()
    print_location(results, out)
    return out
