"""How good the speech is: `python -m recipes.wren_86.judge --help`."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from mmspec import drafters, zoo
from mmspec.bench import report
from mmspec.bench.speech import FOUR_HEADS
from mmspec.cli.common import run_function
from mmspec.codecs.mel import RATE, MelCodec
from mmspec.drafters.base import Drafter
from mmspec.drafters.heads import HeadDrafter
from mmspec.errors import MmspecError, unknown
from mmspec.media import audio as sound
from mmspec.pipelines.text_to_speech import TextToSpeechOutput, TextToSpeechPipeline
from mmspec.placement import dtype_of
from mmspec.versions import provenance
from recipes.wren_86.data import Utterance, read_utterances, recording
from recipes.wren_86.measures import Listener, Rating, error_rate

console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Take:
    """One utterance to be listened to; where the model spoke it, its output, the seconds that it took, and those to the
    first samples when it is streamed."""

    audio: Tensor
    output: TextToSpeechOutput | None = None
    seconds: float = 0.0
    first: float = 0.0

    @property
    def lossless(self) -> bool:
        """Whether the model spoke it, and as plain decoding does."""
        return bool(self.output and self.output.stats.lossless)


def speak(
    pipe: TextToSpeechPipeline,
    utterance: Utterance,
    seed: int,
    drafter: str | Drafter,
    acceptance: str,
    temperature: float,
) -> Take:
    """Say a held-out sentence: streamed until the first samples are there, then as a whole."""
    sampling: dict[str, Any] = {"drafter": drafter, "acceptance": acceptance, "temperature": temperature}
    say = partial(pipe, utterance.text, voice=utterance.voice, seed=seed, **sampling)
    stream = partial(pipe.stream, utterance.text, voice=utterance.voice, seed=seed, **sampling)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how sentences end is counted
        stream()  # what passes cost here is measured once, outside the clock
        first = next((chunk.output.first_audio for chunk in stream() if len(chunk.audio)), 0.0)
        began = perf_counter()
        output = say()
        return Take(output.audio, output, perf_counter() - began, first)


def row(label: str, takes: list[Take], ratings: list[Rating], plain: list[Rating] | None) -> dict[str, Any]:
    """One line of the table; `plain` are the ratings of plain decoding, sentence by sentence."""
    words = [rating.words for rating in ratings]
    rate, error = error_rate([rating.errors for rating in ratings], words)
    result: dict[str, Any] = {
        "label": label,
        "sentences": len(ratings),
        "word_error_rate": rate,
        "word_error_rate_error": error,
        "dnsmos": float(np.mean([rating.dnsmos for rating in ratings])),
        "dnsmos_overall": float(np.mean([rating.dnsmos_overall for rating in ratings])),
        "similarity": float(np.mean([rating.similarity for rating in ratings])),
    }
    outputs = [take.output for take in takes if take.output]
    if not outputs:
        return result
    if plain:
        differences = [rating.errors - other.errors for rating, other in zip(ratings, plain, strict=True)]
        rate, error = error_rate(differences, words)
        result |= {"over_ar": rate, "over_ar_error": error}
    parts = [stats for output in outputs for stats in output.sentence_stats]
    tokens, ended = sum(part.tokens for part in parts), [reason for output in outputs for reason in output.ended]
    return result | {
        "drafter": parts[0].drafter,
        "acceptance": parts[0].acceptance,
        "lossless": parts[0].lossless,
        "mean_acceptance_length": tokens / sum(len(runs) for part in parts for runs in part.runs),
        "tokens_per_second": tokens / sum(part.total for part in parts),
        "real_time_factor": sum(take.seconds for take in takes) / sum(output.seconds for output in outputs),
        "seconds_to_first_audio": float(np.mean([take.first for take in takes])),
        "ended": {reason: ended.count(reason) for reason in dict.fromkeys(ended)},
    }


HEADS = (
    "",
    "lossless",
    "word error rate",
    "over AR",
    "DNSMOS P.808",
    "overall",
    "similarity",
    "accepted length",
    "tokens/s",
    "real-time factor",
    "first audio",
    "ended by itself",
)


def line(row: dict) -> list[str]:
    """One table line; what only a model has is a dash for recordings."""
    cells = [
        row["label"],
        "–" if "lossless" not in row else "yes" if row["lossless"] else "**no**",
        f"{100 * row['word_error_rate']:.1f} ± {100 * row['word_error_rate_error']:.1f} %",
        f"{100 * row['over_ar']:+.1f} ± {100 * row['over_ar_error']:.1f}" if "over_ar" in row else "–",
        f"{row['dnsmos']:.2f}",
        f"{row['dnsmos_overall']:.2f}",
        f"{row['similarity']:.3f}",
    ]
    if "ended" not in row:
        return cells + ["–"] * 5
    return [
        *cells,
        f"{row['mean_acceptance_length']:.2f}",
        f"{row['tokens_per_second']:.0f}",
        f"{row['real_time_factor']:.2f}",
        f"{row['seconds_to_first_audio']:.2f} s",
        f"{row['ended'].get('end', 0)} of {sum(row['ended'].values())}",
    ]


def markdown(results: dict) -> str:
    """The whole report."""
    origin = ", ".join(f"{key} {value}" for key, value in (results["provenance"] | results["measures"]).items())
    body = ["| " + " | ".join(line(row)) + " |" for row in results["rows"]]
    return "\n\n".join(
        (
            f"# Speech, {results['model']}, {results['sentences']} held-out sentences, T = {results['temperature']}, "
            f"{results['dtype']}",
            origin,
            "\n".join(["| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|", *body]),
            "± is one standard error over sentences; over AR is the paired difference in points. Similarity is to "
            "another utterance of the original voice. Time is of whole calls with the decoder as users get it; plain "
            "decoding at its fastest stands in `mmspec bench speech`.\n",
        )
    )


def held_out(model: Path, data: Path, voice: str | None, count: int) -> list[tuple[Utterance, Utterance]]:
    """`count` sentences that the model has not seen, voices taking turns, each with another utterance of its voice."""
    lines = zoo.prompts(model, "voice", "held_out")
    unseen = {(line["voice"], line["prompt"]) for line in lines if line["held_out"]}
    voices = list(dict.fromkeys(line["voice"] for line in lines))
    if voice is not None and voice not in voices:
        raise unknown("voice", voice, voices)
    utterances = {}
    for name in [voice] if voice else voices:
        index = data / f"{name}.jsonl"
        if not index.exists():
            raise MmspecError(
                f"no recordings of {name} in {data}: give --work, or make them: "
                f"mmspec train {model / 'recipe.yaml'} --stages data"
            )
        utterances[name] = [spoken for spoken in read_utterances(index) if (spoken.voice, spoken.text) in unseen]
    order = [list(utterances)[number % len(utterances)] for number in range(count)]
    most = min(map(len, utterances.values()))
    if not 2 <= count <= most:
        raise MmspecError(
            f"--sentences {count} is out of range: the model has {most} held-out sentences, give from 2 on"
        )
    return [(utterances[name][number], utterances[name][(number + 1) % most]) for number, name in enumerate(order)]


def settings(
    pipe: TextToSpeechPipeline, names: Sequence[str], tolerances: Sequence[int]
) -> list[tuple[str, str | Drafter, str]]:
    """(label, drafter, acceptance rule) of plain decoding and of every drafter at every tolerance; drafters with more
    than four heads come with four, too."""
    kinds: list[tuple[str, Drafter]] = []
    for name in names:
        whole = drafters.load(name, pipe.folder, pipe.target)
        heads = len(whole.horizontal) if isinstance(whole, HeadDrafter) else 0
        if heads > 4:
            fewer = drafters.load(name, pipe.folder, pipe.target, **FOUR_HEADS)
            kinds += [(f"{name}, {heads} heads", whole), (f"{name}, 4 heads", fewer)]
        else:
            kinds.append((name, whole))
    return [
        ("AR", "none", "exact"),
        *((f"{label}, τ = {tau}", drafter, f"tolerance:{tau}") for label, drafter in kinds for tau in tolerances),
    ]


def main(
    model: str = "wren-86",
    work: Path = Path("training"),
    out: Path = Path("docs/results/speech-quality"),
    sentences: int = 100,
    voice: str | None = None,
    drafter: tuple[str, ...] = (),
    tolerances: tuple[int, ...] = (1, 2, 3, 5),
    temperature: float | None = None,
    dtype: str = "bf16",
    seed: int = 0,
    samples: int = 2,
) -> None:
    """Rate held-out sentences: original voice, vocoder, codec, plain decoding, and drafters at every tolerance.

    Writes quality.json and quality.md anew after each row, and some of the audio to samples/. Needs
    `mmspec[speech,eval]`.

    Args:
        work: the folder that `mmspec train --work` used (recordings); the measures' weights are fetched to it.
        voice: the only voice; voices take turns if left out.
        drafter: vadusa and jacobi if the model has VADUSA's heads, else the model's default.
        temperature: the model's own if left out.
        samples: how many sentences are kept to be heard; of lossless rows only plain decoding's.
    """
    folder, data = zoo.resolve(model), work / "data"
    chosen = held_out(folder, data, voice, sentences)
    listener = Listener(data)
    pipe = TextToSpeechPipeline.from_pretrained(folder, torch_dtype=dtype_of(dtype))
    if not isinstance(pipe.codec, MelCodec):
        raise MmspecError(
            f"{model} has no vocoder of its own ({type(pipe.codec).__name__}): give a model with a MelCodec"
        )
    codec = pipe.codec
    names = drafter or (("vadusa", "jacobi") if "vadusa" in drafters.usable(folder) else (pipe.drafter,))
    temperature = pipe.temperature if temperature is None else temperature
    (out / "samples").mkdir(parents=True, exist_ok=True)

    def original(utterance: Utterance) -> Tensor:
        samples = recording(data, utterance.voice)[utterance.start : utterance.end]
        return torch.from_numpy(samples.astype(np.float32) / 32768)

    @torch.inference_mode()
    def vocoded(utterance: Utterance, number: int) -> Take:
        return Take(codec.vocode(codec.mel(original(utterance)[None]))[0])

    def coded(utterance: Utterance, number: int) -> Take:
        return Take(codec.decode(codec.encode(original(utterance)[None], RATE))[0])

    def spoken(utterance: Utterance, number: int, drafter: str | Drafter, rule: str) -> Take:
        return speak(pipe, utterance, seed + 100 * number, drafter, rule, temperature)

    cases: list[tuple[str, Callable[[Utterance, int], Take]]] = [
        ("original voice", lambda utterance, number: Take(original(utterance))),
        ("vocoder alone", vocoded),
        ("codec round trip", coded),
        *((label, partial(spoken, drafter=used, rule=rule)) for label, used, rule in settings(pipe, names, tolerances)),
    ]
    rows: list[dict] = []
    results: dict[str, Any] = {
        "model": model,
        "voices": list(dict.fromkeys(utterance.voice for utterance, _ in chosen)),
        "sentences": len(chosen),
        "temperature": temperature,
        "dtype": dtype,
        "seed": seed,
        "measures": listener.origin,
        "provenance": provenance("cpu"),
        "rows": rows,
    }
    voices = [listener.voice(original(other), RATE) for _, other in chosen]
    plain: list[Rating] | None = None
    plain_audio: list[Tensor] = []
    for index, (label, case) in enumerate(cases):
        takes, ratings = [], []
        pairs = list(zip(chosen, voices, strict=True))
        for number, ((utterance, _), embedding) in enumerate(track(pairs, label, console=console)):
            takes.append(case(utterance, number))
            if plain and torch.equal(takes[-1].audio, plain_audio[number]):
                ratings.append(plain[number])
            else:
                ratings.append(listener(takes[-1].audio, RATE, utterance.text, embedding))
            if number < samples and not (plain and takes[-1].lossless):
                facts: dict[str, object] = {
                    "text": utterance.text,
                    "voice": utterance.voice,
                    "model": model,
                    "what": label,
                    "heard": ratings[-1].transcript,
                }
                path = out / "samples" / f"{number}-{index:02}-{slug(label)}.flac"
                sound.save(takes[-1].audio, RATE, path, facts)
        rows.append(row(label, takes, ratings, plain))
        if label == "AR":
            plain, plain_audio = ratings, [take.audio for take in takes]
        console.print(rows[-1])
        report.save(out, "quality", results, markdown(results))


def slug(label: str) -> str:
    """A label as part of a file's name."""
    letters = label.replace("τ", "tau").lower()
    return "-".join("".join(c if c.isalnum() and c.isascii() else " " for c in letters).split())


if __name__ == "__main__":
    run_function(main)
