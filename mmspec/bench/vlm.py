"""`mmspec bench vlm`: every drafter beside plain AR and `transformers.generate`, in one process on one model, by task
and temperature.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from mmspec import zoo
from mmspec.bench.suite import (
    Case,
    Choice,
    Runner,
    Setting,
    by_generate,
    can_compile,
    choose_min_query_len,
    measure,
    new_results,
    passes_of,
    print_location,
    sweep,
)
from mmspec.drafters.base import Drafter
from mmspec.engine.loop import Stop, stream
from mmspec.engine.packed import unpacked
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.stats import GenerationStats
from mmspec.errors import MmspecError
from mmspec.pipelines import reads_pictures
from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline
from mmspec.placement import dtype_of
from mmspec.targets.causal import Prompts
from mmspec.targets.vision_language import VisualPrompts

BUNDLED = "magpie-135"
# What the lines of `prompts.jsonl` are by their kind; any other kind is a short answer.
TASKS = {"describe": "descriptions", "follow-up": "several turns"}
SHORT = "short answers"
TEMPERATURES = (0.0, 1.0)
ASSISTED = "transformers, prompt lookup"

CASES = (
    Case("AR, our loop", "none"),
    Case("lookup", "lookup"),
    Case("jacobi", "jacobi"),
    Case("EAGLE-2 (no decoupling)", "eagle-2"),
    Case("MSD, two stages", "msd-two-stages"),
    Case("MSD, answers of the data", "msd-data"),
    Case("MSD, top-k", "msd", options={"coupled": False}),
    Case("dspark", "dspark"),
    Case("MSD", "msd"),
)
QUICK = ("AR, our loop", "lookup", "jacobi", "EAGLE-2 (no decoupling)", "MSD")


@dataclass(frozen=True, slots=True)
class AnswerRun:
    """What one call cost, and seconds to its first token, if they are known."""

    stats: GenerationStats
    first: float | None


def answer(
    pipe: ImageTextToTextPipeline,
    sampling: SamplingOptions,
    drafter: Drafter,
    rule: str,
    prompts: Prompts,
    length: int,
    seed: int,
) -> AnswerRun:
    """By the loop."""
    stats, first, rows = GenerationStats(), 0.0, len(prompts.conditional)
    loop_kwargs: dict = dict(sampling=sampling, seeds=seed, rule=rule, stats=stats)
    for _ in stream(pipe.target, prompts, rows, Stop(length, pipe.ends), drafter, **loop_kwargs):
        first = first or stats.total
    return AnswerRun(stats, first)


class FirstTokenStreamer:
    """A streamer of transformers that only notes when the first token came."""

    def __init__(self) -> None:
        self.began, self.first, self.calls = perf_counter(), 0.0, 0

    def put(self, value: Tensor) -> None:
        self.calls += 1
        if self.calls == 2:  # the first call brings the prompt
            self.first = perf_counter() - self.began

    def end(self) -> None: ...


def answer_by_transformers(
    pipe: ImageTextToTextPipeline, sampling: SamplingOptions, options: dict, prompts: Prompts, length: int, seed: int
) -> AnswerRun:
    """By `transformers.generate`."""
    assert isinstance(prompts, VisualPrompts)
    torch.manual_seed(seed)
    ids = torch.tensor(prompts.conditional, device=pipe.device)
    image_inputs = {key: value.to(pipe.device) for key, value in prompts.images[0].items()} if prompts.images else {}
    if "pixel_values" in image_inputs:
        image_inputs["pixel_values"] = image_inputs["pixel_values"].to(pipe.transformer.dtype)
    sampling_kwargs: dict = (
        dict(do_sample=False) if sampling.greedy else dict(do_sample=True, temperature=sampling.temperature, top_k=0)
    )
    sampling_kwargs |= dict(top_p=1.0, repetition_penalty=1.0)  # whatever the model's own generation config says
    end_kwargs = dict(eos_token_id=sorted(pipe.ends) or None, pad_token_id=min(pipe.ends, default=0))
    with unpacked(pipe.transformer):
        clock = FirstTokenStreamer()
        streams = "prompt_lookup_num_tokens" not in options  # assisted generation takes no streamer
        streamer_kwargs = {"streamer": clock} if streams else {}
        out = pipe.transformer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=length,
            **image_inputs,
            **sampling_kwargs,
            **options,
            **streamer_kwargs,
            **end_kwargs,
        )
        total, count = perf_counter() - clock.began, out.shape[1] - ids.shape[1]
    stats = GenerationStats("transformers", "sampling", target=total, total=total, nodes=count, runs=[[1] * count])
    return AnswerRun(stats, clock.first if streams else None)


def questions(folder: Path) -> list[dict]:
    """A model's own list, `prompts.jsonl`; where it has none, that of the bundled model, pictures by their
    full paths.
    """
    source = folder if (folder / zoo.PROMPTS).exists() else zoo.resolve(BUNDLED)
    return [
        line | ({"image": str((source / line["image"]).absolute())} if line.get("image") else {})
        for line in zoo.prompts(source)
    ]


def answer_fields(task: str, label: str, runs: Sequence[AnswerRun]) -> dict:
    """What rows of answers have beside the others' fields."""
    firsts = [run.first for run in runs if run.first is not None]
    fields: dict = {"task": task, "seconds_to_first_token": sum(firsts) / len(firsts) if firsts else None}
    # transformers does not say how many of its guesses were accepted
    return fields | ({"mean_acceptance_length": None} if label == ASSISTED else {})


def run_setting(
    pipe: ImageTextToTextPipeline,
    folder: Path,
    dtype: str,
    batch: int,
    repeats: int,
    seed: int,
    cases: Sequence[Case],
    task: str,
    choice: Choice = Choice(),
) -> list[dict]:
    """All cases on the same questions and seeds, at every temperature."""
    lines = [line for line in choice.prompts or questions(folder) if TASKS.get(line.get("kind", ""), SHORT) == task]
    if not lines:
        return []
    encoded = [
        pipe.encode_examples([lines[(turn * batch + i) % len(lines)] for i in range(batch)])[0]
        for turn in range(repeats)
    ]
    choose_min_query_len(pipe.target, encoded[0], pipe.max_new_tokens)
    pipe.compiled = can_compile(choice, encoded[0])
    results = []
    for temperature in choice.temperatures or TEMPERATURES:
        sampling = SamplingOptions(temperature)
        foreign: list[tuple[str, Runner[AnswerRun]]] = []
        if batch == 1:
            theirs = partial(answer_by_transformers, pipe, sampling)
            foreign = by_generate(partial(partial, theirs), pipe.compiled)
            # It would copy the places of a picture out of the prompt, and fail; what is suppressed is not copied.
            assisted = {"prompt_lookup_num_tokens": 10, "suppress_tokens": [pipe.transformer.config.image_token_id]}
            foreign.append((ASSISTED, partial(theirs, assisted)))
        setting = Setting(
            pipe.target,
            folder,
            lambda turn: (encoded[turn], pipe.max_new_tokens),
            partial(Stop, eos=pipe.ends),
            repeats,
            batch,
            seed,
            dtype,
            sampling,
            f"{dtype}, batch {batch}, T = {temperature:g}, {task}, {passes_of(pipe.target)}",
            choice.nodes,
        )
        results += measure(setting, cases, partial(answer, pipe, sampling), foreign, partial(answer_fields, task))
    return results


def run(
    model: str = BUNDLED,
    out: Path = Path("results"),
    quick: bool = False,
    device: str = "cpu",
    dtypes: Sequence[str] = ("bf16", "fp32"),
    seed: int = 0,
    batches: Sequence[int] = (1,),
    prompts: int = 8,
    choice: Choice = Choice(),
) -> Path:
    """Write `results.json`, `results.md` and `results.png` to `out`, anew after each setting, and return it.

    `quick` runs the cases of `QUICK`.
    """
    folder = zoo.resolve(model, allow_transformers=True)
    if not reads_pictures(folder):
        raise MmspecError(f"{model} reads no pictures, and bench vlm asks about pictures: mmspec verify compares it")
    results = new_results("vlm", model, device)
    cases = choice.cases([case for case in CASES if not quick or case.label in QUICK])

    def run_tasks(dtype: str, batch: int, now: Choice) -> list[dict]:
        pipe = ImageTextToTextPipeline.from_pretrained(folder, torch_dtype=dtype_of(dtype)).to(device)
        count = max(1, prompts // batch)
        return [
            line
            for task in ("descriptions", SHORT, "several turns")
            for line in run_setting(pipe, folder, dtype, batch, count, seed, cases, task, now)
        ]

    sweep(results, out, dtypes, batches, choice, run_tasks)
    print_location(results, out)
    return out
