"""`mmspec bench speech`: every drafter beside plain AR and `transformers.generate`, in one process on one model."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from mmspec.bench.contest import (
    Entrant,
    Transformers,
    announce,
    at_its_fastest,
    begun,
    compare,
    row,
    runners,
    sweep,
    take_turns,
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
FOUR_HEADS: dict[str, Any] = {"horizontal": [0, 1, 2, 3]}

ENTRANTS = (
    Entrant("AR, our loop", "none"),
    Entrant("lookup", "lookup"),
    Entrant("jacobi", "jacobi"),
    Entrant("medusa, top-k", "medusa", options={"coupled": False}),
    Entrant("vadusa, coupled", "vadusa"),
    Entrant("vadusa, sparse tree", "vadusa", options={"sparse": True}),
    Entrant("vadusa, 4 heads", "vadusa", options=FOUR_HEADS),
    Entrant("vadusa, tolerance 2", "vadusa", "tolerance:2"),
    Entrant("vadusa, tolerance 3", "vadusa", "tolerance:3"),
    Entrant("vadusa, tolerance 5", "vadusa", "tolerance:5"),
    Entrant("hawk-path, coupled", "hawk-path"),
    *(Entrant(f"jacobi, tolerance {tau}", "jacobi", f"tolerance:{tau}") for tau in (2, 3, 5)),
)
QUICK = ("AR, our loop", "jacobi", "vadusa, coupled", "vadusa, tolerance 3", "hawk-path, coupled")


def fits(entrant: Entrant, folder: Path) -> bool:
    """Four heads need more than four to be fewer, and a sparse tree needs accuracies."""
    path = folder / "drafters" / entrant.drafter / "config.json"
    try:
        known = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        return True  # loading it says what is wrong
    return (entrant.options != FOUR_HEADS or known.get("heads", 6) > 4) and (
        "sparse" not in entrant.options or bool(known.get("accuracies"))
    )


@dataclass(frozen=True, slots=True)
class Said:
    """What one call cost: its tokens, why each row ended, seconds of decoding, of audio, and until the first samples of a streamed call."""

    stats: GenerationStats
    ended: list[str]
    decoding: float
    audio: float
    first: float


def voiced(pipe: TextToSpeechPipeline, tokens: list[list[int]]) -> tuple[float, float]:
    """Seconds that decoding whole rows of codec tokens takes, and seconds of audio that come of it; a part of a frame has none."""
    began, samples, width = perf_counter(), 0, pipe.codec.frame_tokens
    for one in tokens:
        if whole := one[: len(one) // width * width]:
            samples += pipe.codec.decode(torch.tensor([whole])).cpu().shape[1]
    return perf_counter() - began, samples / pipe.codec.sampling_rate


def why(pipe: TextToSpeechPipeline, tokens: list[int]) -> str:
    """As `TextToSpeechOutput.ended`."""
    return "end" if tokens[-1:] == [pipe.end] else pipe.stalled(pipe.codes(tokens)) or "length"


def say(
    pipe: TextToSpeechPipeline,
    sampling: SamplingOptions,
    drafter: Drafter,
    rule: str,
    prompts: Prompts,
    length: int,
    seed: int,
) -> Said:
    """Tokens by the loop, then whole rows decoded; only the first piece of the first row is decoded as a streamed call would, and timed."""
    rows = len(prompts.conditional)
    tokens: list[list[int]] = [[] for _ in range(rows)]
    stats, decoder, told, extra, first = GenerationStats(), StreamDecoder(pipe.codec), 0, 0.0, 0.0
    for found in stream(
        pipe.target, prompts, rows, pipe.stop(length), drafter, sampling=sampling, seeds=seed, rule=rule, stats=stats
    ):
        for one, new in zip(tokens, found.tokens, strict=True):
            one += new
        codes = [] if first else pipe.codes(tokens[0])
        if not first and len(codes) - told >= pipe.due(told) and tokens[0][-1] != pipe.end:
            began = perf_counter()
            audio, told = decoder.push(codes[told:]), len(codes)
            extra += perf_counter() - began
            first = stats.total + extra if len(audio) else 0.0
    decoding, audio_seconds = voiced(pipe, [pipe.codes(one) for one in tokens])
    return Said(stats, [why(pipe, one) for one in tokens], decoding, audio_seconds, first or stats.total + decoding)


def say_plainly(pipe: TextToSpeechPipeline, model: Transformers, prompts: Prompts, length: int, seed: int) -> Said:
    """The same by `transformers.generate`, which gives all tokens at once: its first samples are there with the last."""
    done = model(prompts, length, seed)
    decoding, audio = voiced(pipe, [pipe.codes(one) for one in done.tokens])
    return Said(done.stats, [why(pipe, one) for one in done.tokens], decoding, audio, done.stats.total + decoding)


def sounds(label: str, found: Sequence[Said]) -> dict[str, Any]:
    """What rows of speech have beside the others' fields: seconds of computing (tokens and decoding) per second of audio, mean
    seconds to the first samples, and how rows ended."""
    audio = sum(said.audio for said in found)
    if not audio:
        raise MmspecError(f"{label}: the model said nothing; give more --prompts or another --seed")
    return {
        "audio_seconds": audio,
        "decoding_seconds": sum(said.decoding for said in found),
        "real_time_factor": sum(said.stats.total + said.decoding for said in found) / audio,
        "seconds_to_first_audio": sum(said.first for said in found) / len(found),
        "ended": dict(Counter(reason for said in found for reason in said.ended)),
    }


def contest(
    folder: Path, dtype: str, device: str, batch: int, repeats: int, seed: int, entrants: Sequence[Entrant]
) -> list[dict]:
    """All entrants on the same prompts and seeds, at temperature 1 and at the model's own; the model's voices take turns too."""
    pipe = TextToSpeechPipeline.from_pretrained(folder, torch_dtype=dtype_of(dtype)).to(device)

    def asked(turn: int) -> tuple[Prompts, int]:
        numbers = range(turn * batch, (turn + 1) * batch)
        prompts, stop = pipe.rows(
            [{"prompt": PROMPTS[i % len(PROMPTS)], "voice": pipe.voices[i % len(pipe.voices)]} for i in numbers]
        )
        return prompts, stop.length

    at_its_fastest(pipe.target, *asked(0))
    chosen, found = [entrant for entrant in entrants if fits(entrant, folder)], []
    for temperature in dict.fromkeys((1.0, pipe.temperature)):
        field = runners(chosen, folder, pipe.target, *asked(0), partial(say, pipe, SamplingOptions(temperature)))
        if batch == 1 and pipe.codec.frame_tokens == 1 and temperature:
            plain = Transformers(pipe.target, pipe.end, temperature)
            field.insert(1, (plain.label, partial(say_plainly, pipe, plain)))
        title, rows = (
            f"{dtype}, batch {batch}, T = {temperature:g}, passes of {pipe.target.min_query_len} nodes or more",
            [],
        )
        for label, said in take_turns(field, asked, repeats, batch, seed, title).items():
            own = {"temperature": temperature} | sounds(label, said)
            rows.append(row(label, title, [one.stats for one in said], dtype, device, batch) | own)
        found += compare(rows)
    return found


def run(
    model: str = "wren-86",
    out: Path = Path("results"),
    quick: bool = False,
    device: str = "cpu",
    dtypes: Sequence[str] = ("bf16", "fp32"),
    seed: int = 0,
    batches: Sequence[int] = (1,),
    prompts: int = 8,
) -> Path:
    """Write `results.json`, `results.md` and `results.png` to `out`, anew after each contest, and return it.

    `quick` runs the entrants of `QUICK`.
    """
    folder = resolve(model)
    results = begun("speech", model, device)
    entrants = tuple(entrant for entrant in ENTRANTS if not quick or entrant.label in QUICK)
    sweep(
        results,
        out,
        dtypes,
        batches,
        lambda dtype, batch: contest(folder, dtype, device, batch, max(1, prompts // batch), seed, entrants),
    )
    announce(results, out)
    return out
