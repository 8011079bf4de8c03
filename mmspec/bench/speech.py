"""`mmspec bench speech`: every drafter beside plain AR and `transformers.generate`, in one process on one model."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import torch

from mmspec.bench.suite import (
    Case,
    Choice,
    Runner,
    Setting,
    TransformersBaseline,
    by_generate,
    can_compile,
    choose_min_query_len,
    measure,
    new_results,
    passes_of,
    print_location,
    sweep,
)
from mmspec.codecs.base import StreamDecoder
from mmspec.drafters.base import Drafter
from mmspec.engine.loop import stream
from mmspec.engine.sampling import SamplingOptions
from mmspec.engine.stats import GenerationStats
from mmspec.errors import MmspecError
from mmspec.pipelines.text_to_speech import TextToSpeechPipeline
from mmspec.placement import dtype_of
from mmspec.targets.causal import Prompts
from mmspec.zoo import resolve

PROMPTS = (
    "A cold wind blew the last leaves across the empty square.",
    "Did Maria really send twelve letters to Vienna?",
    "The train to Boston leaves at nine thirty and takes forty minutes.",
    "In 1969, two people walked on the Moon for the first time.",
    "She sold the old piano for $350 and bought a bicycle.",
    "Nobody knew why the lights of the harbor had gone out.",
    "Please call the office before noon, or write to David.",
    "Thank you for waiting, we will be with you in a moment!",
)

# The drafter's option that leaves four of more heads unused: the draft is as deep as there are horizontal heads.
FOUR_HEADS: dict = {"horizontal": [0, 1, 2, 3]}

CASES = (
    Case("AR, our loop", "none"),
    Case("lookup", "lookup"),
    Case("jacobi", "jacobi"),
    Case("medusa, top-k", "medusa", options={"coupled": False}),
    Case("vadusa, coupled", "vadusa"),
    Case("vadusa with a table, coupled", "vadusa-table"),
    Case("vadusa, sparse tree", "vadusa", options={"sparse": True}),
    Case("vadusa, 4 heads", "vadusa", options=FOUR_HEADS),
    Case("vadusa, tolerance 2", "vadusa", "tolerance:2"),
    Case("vadusa, tolerance 3", "vadusa", "tolerance:3"),
    Case("vadusa, tolerance 5", "vadusa", "tolerance:5"),
    Case("hawk-path, coupled", "hawk-path"),
    Case("dspark, coupled", "dspark"),
    *(Case(f"jacobi, tolerance {tau}", "jacobi", f"tolerance:{tau}") for tau in (2, 3, 5)),
)
QUICK = ("AR, our loop", "jacobi", "vadusa, coupled", "vadusa, tolerance 3", "hawk-path, coupled")


def fits(case: Case, folder: Path) -> bool:
    """Four heads need more than four to be fewer, and a sparse tree needs accuracies."""
    path = folder / "drafters" / case.drafter / "config.json"
    try:
        config = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        return True  # loading it says what is wrong
    return (case.options != FOUR_HEADS or config.get("heads", 6) > 4) and (
        "sparse" not in case.options or bool(config.get("accuracies"))
    )


@dataclass(frozen=True, slots=True)
class SpeechRun:
    """What one call cost: its tokens, why each row ended, seconds of decoding, of audio, and until the first samples of
    a streamed call.
    """

    stats: GenerationStats
    ended: list[str]
    decoding: float
    audio: float
    first: float


def decode_audio(pipe: TextToSpeechPipeline, tokens: list[list[int]]) -> tuple[float, float]:
    """Seconds that decoding whole rows of codec tokens takes, and seconds of audio that come of it; a part of a frame
    has none.
    """
    began, samples, width = perf_counter(), 0, pipe.codec.frame_tokens
    for codes in tokens:
        if complete := codes[: len(codes) // width * width]:
            samples += pipe.codec.decode(torch.tensor([complete])).cpu().shape[1]
    return perf_counter() - began, samples / pipe.codec.sampling_rate


def end_reason(pipe: TextToSpeechPipeline, tokens: list[int]) -> str:
    """As `TextToSpeechOutput.ended`."""
    return "end" if pipe.over(tokens) else pipe.stall.reason(pipe.codes(tokens)) or "length"


def speak(
    pipe: TextToSpeechPipeline,
    sampling: SamplingOptions,
    drafter: Drafter,
    rule: str,
    prompts: Prompts,
    length: int,
    seed: int,
) -> SpeechRun:
    """Tokens by the loop, then whole rows decoded; only the first piece of the first row is decoded as a streamed call
    would, and timed.
    """
    rows = len(prompts.conditional)
    tokens: list[list[int]] = [[] for _ in range(rows)]
    stats, decoder, decoded, extra, first = GenerationStats(), StreamDecoder(pipe.codec), 0, 0.0, 0.0
    for step in stream(
        pipe.target, prompts, rows, pipe.stop(length), drafter, sampling=sampling, seeds=seed, rule=rule, stats=stats
    ):
        for committed, new in zip(tokens, step.tokens, strict=True):
            committed += new
        codes = [] if first else pipe.codes(tokens[0])
        if not first and len(codes) - decoded >= pipe.min_tokens_for_chunk(decoded) and not pipe.over(tokens[0]):
            began = perf_counter()
            audio, decoded = decoder.push(codes[decoded:]), len(codes)
            extra += perf_counter() - began
            first = stats.total + extra if len(audio) else 0.0
    decoding, audio_seconds = decode_audio(pipe, [pipe.codes(row) for row in tokens])
    return SpeechRun(
        stats, [end_reason(pipe, row) for row in tokens], decoding, audio_seconds, first or stats.total + decoding
    )


def speak_by_transformers(
    pipe: TextToSpeechPipeline, model: TransformersBaseline, prompts: Prompts, length: int, seed: int
) -> SpeechRun:
    """The same by `transformers.generate`, which gives all tokens at once: its first samples are there with
    the last.
    """
    generation = model(prompts, length, seed)
    decoding, audio = decode_audio(pipe, [pipe.codes(row) for row in generation.tokens])
    return SpeechRun(
        generation.stats,
        [end_reason(pipe, row) for row in generation.tokens],
        decoding,
        audio,
        generation.stats.total + decoding,
    )


def speech_fields(label: str, runs: Sequence[SpeechRun]) -> dict:
    """What rows of speech have beside the others' fields: seconds of computing (tokens and decoding) per second of
    audio, mean seconds to the first samples, and how rows ended.
    """
    audio = sum(run.audio for run in runs)
    if not audio:
        raise MmspecError(f"{label}: the model said nothing; give more prompts or another --seed")
    return {
        "audio_seconds": audio,
        "decoding_seconds": sum(run.decoding for run in runs),
        "real_time_factor": sum(run.stats.total + run.decoding for run in runs) / audio,
        "seconds_to_first_audio": sum(run.first for run in runs) / len(runs),
        "ended": dict(Counter(reason for run in runs for reason in run.ended)),
    }


def run_setting(
    folder: Path,
    dtype: str,
    device: str,
    batch: int,
    repeats: int,
    seed: int,
    cases: Sequence[Case],
    choice: Choice = Choice(),
) -> list[dict]:
    """All cases on the same prompts and seeds, at temperature 1 and at the model's own; the model's voices take turns
    too.
    """
    pipe = TextToSpeechPipeline.from_pretrained(folder, torch_dtype=dtype_of(dtype)).to(device)
    lines = choice.prompts or tuple({"prompt": text} for text in PROMPTS)

    def job(turn: int) -> tuple[Prompts, int]:
        numbers = range(turn * batch, (turn + 1) * batch)
        prompts, stop = pipe.encode_examples(
            [{"voice": pipe.voices[i % len(pipe.voices)]} | lines[i % len(lines)] for i in numbers]
        )
        return prompts, stop.length

    choose_min_query_len(pipe.target, *job(0))
    pipe.compiled = can_compile(choice, job(0)[0])
    usable, results = [case for case in cases if fits(case, folder)], []
    for temperature in dict.fromkeys(choice.temperatures or (1.0, pipe.temperature)):
        title = f"{dtype}, batch {batch}, T = {temperature:g}, {passes_of(pipe.target)}"
        sampling = SamplingOptions(temperature)
        setting = Setting(
            pipe.target, folder, job, pipe.stop, repeats, batch, seed, dtype, sampling, title, nodes=choice.nodes
        )
        foreign: list[tuple[str, Runner[SpeechRun]]] = []
        if batch == 1 and pipe.codec.frame_tokens == 1 and temperature:

            def runner_of(options: dict, temperature: float = temperature) -> Runner[SpeechRun]:
                plain = TransformersBaseline(pipe.target, pipe.end, temperature, options)
                return partial(speak_by_transformers, pipe, plain)

            foreign = by_generate(runner_of, pipe.compiled)
        results += measure(setting, usable, partial(speak, pipe, sampling), foreign, speech_fields)
    return results


def run(
    model: str = "wren-86",
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
    folder = resolve(model, allow_transformers=True)
    results = new_results("speech", model, device)
    cases = choice.cases([case for case in CASES if not quick or case.label in QUICK])
    sweep(
        results,
        out,
        dtypes,
        batches,
        choice,
        lambda dtype, batch, now: run_setting(folder, dtype, device, batch, max(1, prompts // batch), seed, cases, now),
    )
    print_location(results, out)
    return out
