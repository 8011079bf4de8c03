"""Sound on disk and on a pipe: metadata, pauses, loudness, and the plot of a text being said."""

import contextlib
import importlib
import io
import json
import math
import os
import struct
import sys
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import torch
from jaxtyping import Float, Int16
from torch import Tensor

from mmspec import files
from mmspec.errors import MmspecError

KINDS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG"}
# libsndfile's formats and subtypes, by the names of kinds.
FORMATS = {
    "WAV": ("WAV", "PCM_16"),
    "FLAC": ("FLAC", "PCM_16"),
    "OGG": ("OGG", "VORBIS"),
    "OPUS": ("OGG", "OPUS"),
    "MP3": ("MP3", "MPEG_LAYER_III"),
}
OPUS_RATE = 24000
UNKNOWN = 0xFFFFFFFF
WAV_COMMENT = 2000  # libsndfile reads no longer one
DRAFTED, BONUS = ("#7dcf9f", "#c4ebd3"), ("#f0962e", "#f9cf9a")


def library(name: str, extra: str = "speech") -> Any:
    """The module, or which extra brings it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MmspecError(f"sound needs {error.name}: pip install 'mmspec[{extra}]'") from None


def check_output(path: Path) -> None:
    """A file that can be written, of a known kind, or `-` if standard output is no terminal; raised before any work is
    done.
    """
    if str(path) != "-":
        files.check_output(path, KINDS)
    elif sys.stdout is None:
        raise MmspecError("standard output is closed: give a file")
    elif sys.stdout.isatty():
        raise MmspecError("cannot write sound to a terminal: add a pipe, such as | aplay, or give a file")


def pcm(audio: Float[Tensor, "sample"]) -> Int16[Tensor, "sample"]:
    """16-bit samples; what is above 1 is clipped, what is not finite is refused."""
    if not audio.isfinite().all():
        raise MmspecError("the audio holds values that are not finite: use another dtype")
    return (audio.detach().float().cpu().clamp(-1, 1) * 32767).round().to(torch.int16)


def comment(metadata: dict[str, object], room: int | None) -> str:
    """The metadata as JSON; if it is longer than `room`, its longest texts end in an ellipsis, and long lists are left
    out.
    """
    facts = dict(metadata)
    while room and len(text := json.dumps(facts, default=str)) > room:
        key, longest = max(
            ((key, value) for key, value in facts.items()), key=lambda fact: len(json.dumps(fact[1], default=str))
        )
        if isinstance(longest, str) and len(longest) >= 20:
            facts[key] = longest[: len(longest) * 3 // 4] + "…"
        elif isinstance(longest, list) and len(longest) > 1:
            del facts[key]
        else:
            raise MmspecError(
                f"the metadata take {len(text)} characters and this format has room for {room}: give fewer, or "
                "write .flac"
            )
    return json.dumps(facts, default=str)


def encode(audio: Float[Tensor, "sample"], rate: int, kind: str, metadata: dict[str, object]) -> bytes:
    """A whole file of `kind`, the metadata as JSON in its comment but for AAC; Opus has a rate of its own."""
    if not len(audio):
        raise MmspecError("there is no audio to write: give at least one sample")
    if kind == "AAC":
        return _aac(audio, rate)
    if kind == "OPUS":
        resampler = Resampler(rate, OPUS_RATE)
        audio, rate = torch.cat([resampler.push(audio), resampler.flush()]), OPUS_RATE
    soundfile = library("soundfile")
    buffer, (container, subtype) = io.BytesIO(), FORMATS[kind]
    if subtype not in soundfile.available_subtypes(container):
        raise MmspecError(
            f"libsndfile {soundfile.__libsndfile_version__} writes no {kind}: install soundfile 0.13 or later, or ask "
            "for another format"
        )
    with soundfile.SoundFile(buffer, "w", samplerate=rate, channels=1, subtype=subtype, format=container) as file:
        file.comment = comment(metadata, WAV_COMMENT if kind == "WAV" else None)
        for block in pcm(audio).split(rate):  # libsndfile overflows its stack on a long block of Vorbis
            file.write(block.numpy())
    return buffer.getvalue()


def _aac(audio: Float[Tensor, "sample"], rate: int) -> bytes:
    """An AAC file (ADTS) by FFmpeg's encoder."""
    av = library("av", "aac")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="adts") as file:
        stream = file.add_stream("aac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(pcm(audio).numpy()[None], format="s16", layout="mono")
        frame.sample_rate = rate
        for last in (frame, None):
            for packet in stream.encode(last):
                file.mux(packet)
    return buffer.getvalue()


def read(path: Path) -> tuple[Float[Tensor, "1 sample"], int]:
    """The samples of a sound file, its channels mixed, and its rate. Raises MmspecError for one that is none."""
    soundfile = library("soundfile")
    try:
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise MmspecError(f"{path} cannot be read as sound ({error}): give a .wav, .flac or .ogg file") from None
    if not len(samples):
        raise MmspecError(f"{path} has no samples: give a recording of a voice")
    return torch.from_numpy(samples).mean(1)[None], rate


def save(audio: Float[Tensor, "sample"], rate: int, path: Path, metadata: dict[str, object]) -> None:
    """Write to a temporary file beside `path` and rename it."""
    data = encode(audio, rate, KINDS[path.suffix.lower()], metadata)
    files.write_atomically(path, lambda partial: partial.write_bytes(data))


class Pipe:
    """A WAV on a binary stream, or its samples alone without `header`; each chunk is flushed.

    The header of a WAV says how long it is if all its `samples` are told, and is without an end otherwise. Once the
    reader has gone, `open` is False and chunks go nowhere.
    """

    def __init__(self, out: BinaryIO, rate: int, header: bool = True, samples: int | None = None) -> None:
        self.out = out
        self.open = True
        fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
        whole, data = (UNKNOWN, UNKNOWN) if samples is None else (36 + 2 * samples, 2 * samples)
        wav_header = struct.pack("<4sI4s", b"RIFF", whole, b"WAVE") + fmt + struct.pack("<4sI", b"data", data)
        self.header = wav_header if header else b""

    def write(self, audio: Float[Tensor, "sample"]) -> None:
        """The header comes with the first chunk, so that a failure before it leaves the pipe empty."""
        if not self.open:
            return
        data = self.header + pcm(audio).numpy().astype("<i2").tobytes()
        self.header = b""
        try:
            self.out.write(data)
            self.out.flush()
        except ConnectionError:
            self.open = False
            # What is left in the buffer must not fail once more when Python flushes it at exit.
            with contextlib.suppress(OSError, AttributeError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.out.fileno())
        except OSError as error:
            raise MmspecError(
                f"cannot write to standard output: {error.strerror or error}; choose another place"
            ) from None


class Resampler:
    """Resamples sound that comes in chunks by torchaudio's windowed sinc: chunks join to what the whole would give.

    Only samples whose right context is there are given out; `flush` gives the rest.
    """

    def __init__(self, rate: int, new_rate: int) -> None:
        divisor = math.gcd(rate, new_rate)
        self.old, self.new = rate // divisor, new_rate // divisor
        # torchaudio's filter reaches over 6 zero crossings at a roll-off of 0.99; in frames of `old` samples.
        reach = math.ceil(6 * self.old / (min(self.old, self.new) * 0.99))
        self.context = -(-reach // self.old)
        self.waiting = torch.zeros(0)
        self.before = 0  # frames at the front of `waiting` that are context alone

    def push(self, audio: Float[Tensor, "_"]) -> Float[Tensor, "_"]:
        """What can be given out now that `audio` has come."""
        self.waiting = torch.cat([self.waiting, audio.detach().float().cpu()])
        frames = len(self.waiting) // self.old - self.context
        if self.old == self.new or frames <= self.before:
            return self.flush() if self.old == self.new else self.waiting[:0]
        start, end = self.before * self.new, frames * self.new
        result = self._resample(self.waiting[: (frames + self.context) * self.old])[start:end]
        kept = max(0, frames - self.context)
        self.before, self.waiting = frames - kept, self.waiting[kept * self.old :]
        return result

    def flush(self) -> Float[Tensor, "_"]:
        """The rest, when all has come."""
        result = self._resample(self.waiting)[self.before * self.new :]
        self.before, self.waiting = 0, self.waiting[:0]
        return result

    def _resample(self, audio: Float[Tensor, "_"]) -> Float[Tensor, "_"]:
        if self.old == self.new or not len(audio):
            return audio
        return library("torchaudio").functional.resample(audio, self.old, self.new)


def join(parts: list[Float[Tensor, "_"]], pauses: list[float], rate: int) -> Float[Tensor, "sample"]:
    """The parts one after the other, each with its pause in seconds after it."""
    pieces = [
        piece
        for part, pause in zip(parts, pauses, strict=True)
        for piece in (part, part.new_zeros(round(pause * rate)))
    ]
    return torch.cat(pieces) if pieces else torch.zeros(0)


def loudness(audio: Float[Tensor, "sample"], rate: int, lufs: float = -20.0) -> Float[Tensor, "sample"]:
    """Brought to a loudness by ITU-R BS.1770-4, or as near as a peak of 0.99 allows; what is below -60 dB counts as
    silence.
    """
    audio = audio.float()
    peak = float(audio.abs().max()) if len(audio) else 0.0
    if not 1e-3 < peak < float("inf"):
        return audio
    # Measured at a peak of 0.25, as torchaudio's filters clip at 1; a short sound is repeated to fill one block of 0.4
    # s.
    even = (audio * (0.25 / peak)).repeat(-(-(rate // 2) // len(audio)))
    measured = float(library("torchaudio").functional.loudness(even[None], rate))
    gain = min(10 ** ((lufs - measured) / 20) * 0.25, 0.99) if measured > -70 else min(peak, 0.99)
    return (audio * (gain / peak)).clamp(-0.99, 0.99)


def plot(
    audio: Float[Tensor, "sample"], rate: int, rounds: list[tuple[int, int]], samples_per_token: int, path: Path
) -> None:
    """A PNG: the waveform over the drafted (green) and bonus (orange) tokens of each round, in turns dark and light;
    log-mel below.

    `rounds` are the tokens that each round brought: drafted ones, and the bonus.
    """
    if not len(audio):
        raise MmspecError("there is no audio to plot: give at least one sample")
    torchaudio = library("torchaudio")
    library("matplotlib", "bench").use("Agg")
    from matplotlib import pyplot

    audio = audio.detach().float().cpu()
    seconds, token = len(audio) / rate, samples_per_token / rate
    figure, (wave, mel) = pyplot.subplots(2, 1, sharex=True, figsize=(10, 5), layout="constrained")
    ends = list(accumulate(map(sum, rounds)))
    for tint in (0, 1):
        turns = list(zip(ends, rounds, strict=True))[tint::2]
        drafted = [
            ((end - bonus_count - drafted_count) * token, drafted_count * token)
            for end, (drafted_count, bonus_count) in turns
        ]
        bonus = [((end - bonus_count) * token, bonus_count * token) for end, (_, bonus_count) in turns]
        wave.broken_barh(drafted, (-1, 2), color=DRAFTED[tint], linewidth=0, label="" if tint else "drafted")
        wave.broken_barh(bonus, (-1, 2), color=BONUS[tint], linewidth=0, label="" if tint else "bonus")
    step = -(-len(audio) // 2000)
    columns = torch.nn.functional.pad(audio, (0, -len(audio) % step), value=float(audio[-1])).view(-1, step)
    times = ((torch.arange(len(columns)) + 0.5) * step / rate).numpy()
    wave.fill_between(times, columns.amin(1).numpy(), columns.amax(1).numpy(), color="#20242c", linewidth=0.5)
    peak = max(float(audio.abs().max()), 0.01)
    wave.set(ylim=(-1.05 * peak, 1.05 * peak), xlim=(0, seconds), ylabel="amplitude")
    wave.set_title(f"{sum(map(sum, rounds))} tokens in {len(rounds)} rounds, {seconds:.2f} s", fontsize=10)
    wave.legend(loc="upper right", fontsize=8)

    hop = max(256, len(audio) // 2000)
    spectrum = torchaudio.transforms.MelSpectrogram(rate, n_fft=2048, win_length=1024, hop_length=hop, n_mels=80)
    bands = spectrum(torch.nn.functional.pad(audio, (0, max(0, 2048 - len(audio)))))[:, : -(-len(audio) // hop)]
    mel.imshow(
        bands.clamp(min=1e-5).log10().numpy(), origin="lower", aspect="auto", extent=(0, seconds, 0, 80), cmap="magma"
    )
    mel.set(xlabel="seconds", ylabel="mel band")
    files.write_atomically(path, partial(figure.savefig, dpi=130, format="png"))
    pyplot.close(figure)
