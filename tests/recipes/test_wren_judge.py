"""The judge of speech: what it measures, which sentences it takes, and the report that it writes."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmspec.drafters.vadusa import VadusaDrafter
from mmspec.errors import MmspecError
from mmspec.pipelines.text_to_speech import TextToSpeechPipeline

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("torchaudio")
pytest.importorskip("matplotlib")

from mmspec.bench.speech import PROMPTS  # noqa: E402
from mmspec.codecs.mel import RATE  # noqa: E402
from recipes.wren_86 import judge, measures  # noqa: E402
from recipes.wren_86.judge import Take, held_out, line, settings, speak  # noqa: E402
from recipes.wren_86.measures import Rating, error_rate, word_errors  # noqa: E402


@pytest.fixture(scope="module")
def model(speech_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random speech model with six of VADUSA's heads."""
    folder = Path(shutil.copytree(speech_folder, tmp_path_factory.mktemp("judge") / "model"))
    accuracies = [[0.5 / (depth + rank + 1) for rank in range(8)] for depth in range(6)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        VadusaDrafter(32, heads=6, accuracies=accuracies).save_pretrained(folder / "drafters" / "vadusa")
    return folder


@pytest.fixture(scope="module")
def work(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training folder with four held-out recordings of each voice, which are noise; the model's folder lists them."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "data").mkdir()
    lines, rng = [], np.random.default_rng(0)
    for voice in ("ada", "ben"):
        rows, end = [], 0
        for number, text in enumerate(PROMPTS[:5]):
            length = RATE // 2 + 1000 * number
            rows.append(
                dict(text=text, phonemes="", voice=voice, held_out=number < 4, start=end, end=end + length, onsets=[])
            )
            end += length
        rng.integers(-9000, 9000, end, np.int16).tofile(folder / "data" / f"{voice}.pcm")
        (folder / "data" / f"{voice}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        lines += [
            json.dumps({"prompt": row["text"], "voice": voice, "held_out": True}) for row in rows if row["held_out"]
        ]
    (model / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return folder


class Ear:
    """A listener without weights: hears all of what it is told beforehand, and nothing of anything else."""

    origin = {"ear": "none"}

    def __init__(self, heard: list[torch.Tensor]):
        self.heard = heard

    def voice(self, audio: torch.Tensor, rate: int) -> torch.Tensor:
        return torch.ones(1)

    def __call__(self, audio: torch.Tensor, rate: int, text: str, voice: torch.Tensor) -> Rating:
        assert audio.ndim == 1 and len(audio) and rate == RATE
        words = len(text.split())
        errors = 0 if any(torch.equal(audio, one) for one in self.heard) else words
        return Rating("", errors, words, 4.0, 3.0, 0.9)


@pytest.mark.slow
def test_report(model: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings, codec, plain decoding and each tolerance with six and four heads, in JSON, table and samples with
    their facts."""
    pipe = TextToSpeechPipeline.from_pretrained(model, torch_dtype=torch.float64)
    chosen = [utterance for utterance, _ in held_out(model, work / "data", None, 4)]
    plain_audio = [
        speak(pipe, one, 100 * number, "none", "exact", pipe.temperature).audio for number, one in enumerate(chosen)
    ]
    monkeypatch.setattr(judge, "Listener", lambda folder: Ear(plain_audio))
    judge.main(
        str(model),
        work,
        tmp_path / "found",
        sentences=4,
        tolerances=(1, 3),
        dtype="fp64",
        samples=1,
        drafter=("vadusa",),
    )
    results = json.loads((tmp_path / "found" / "quality.json").read_text())
    labels = ["original voice", "vocoder alone", "codec round trip", "AR"]
    labels += [f"vadusa, {heads} heads, τ = {tau}" for heads in (6, 4) for tau in (1, 3)]
    rows = {row["label"]: row for row in results["rows"]}
    assert list(rows) == labels and results["voices"] == ["ada", "ben"] and results["sentences"] == 4
    assert {"commit", "torch", "processor"} <= results["provenance"].keys() and results["measures"] == Ear.origin
    plain = rows["AR"]
    for label, row in rows.items():
        assert {"word_error_rate", "word_error_rate_error", "dnsmos", "dnsmos_overall", "similarity"} <= row.keys()
        assert ("tokens_per_second" in row) == (label not in labels[:3])
        if row.get("lossless"):
            assert (
                row["ended"] == plain["ended"] and row["mean_acceptance_length"] >= plain["mean_acceptance_length"] == 1
            )
    assert rows[labels[5]]["over_ar"] > 0 and rows[labels[4]]["over_ar"] == 0 and "over_ar" not in plain
    assert all(row["seconds_to_first_audio"] > 0 and row["real_time_factor"] > 0 for row in results["rows"][3:])
    text = (tmp_path / "found" / "quality.md").read_text()
    assert all(f"| {label} |" in text for label in labels) and "+0.0 ± 0.0" in text and "**no**" in text
    cost = pytest.importorskip("mmspec.demo.speech").cost(
        tmp_path / "found", "vadusa"
    )  # what the demo says of it, with all heads
    assert cost.count("\n") == 5 and f"| 3 | {rows[labels[5]]['mean_acceptance_length']:.2f} |" in cost
    samples = sorted(path.name for path in (tmp_path / "found" / "samples").iterdir())
    assert samples[0] == "0-00-original-voice.flac" and samples[-1] == "0-07-vadusa-4-heads-tau-3.flac"
    assert not any("tau-1" in name for name in samples)  # the same as plain decoding's
    with soundfile.SoundFile(tmp_path / "found" / "samples" / samples[-1]) as file:
        assert file.samplerate == RATE and json.loads(file.comment)["what"] == labels[-1]


def test_held_out(model: Path, work: Path) -> None:
    """Voices take turns, no sentence comes twice, the other utterance is of the same voice, what was trained on is left
    out."""
    pairs = held_out(model, work / "data", None, 4)
    assert [one.voice for one, _ in pairs] == ["ada", "ben"] * 2 and len({one.text for one, _ in pairs}) == 4
    assert all(
        one.voice == other.voice and one.text != other.text and one.held_out and other.held_out for one, other in pairs
    )
    assert {one.voice for one, _ in held_out(model, work / "data", "ben", 4)} == {"ben"}


def test_held_out_refuses(model: Path, work: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "ada.jsonl").write_text(
        '{"text": "One.", "phonemes": "w", "voice": "ada", "held_out": true, "start": 0, "end": 1}\n'
    )
    for arguments, text in (
        (
            (model, old, None, 4),
            "ada.jsonl is damaged or of another version: remove it, and its recording is made anew",
        ),
        ((model, work / "data", "eve", 4), "unknown voice 'eve'"),
        (
            (model, work / "data", None, 5),
            "--sentences 5 is out of range: the model has 4 held-out sentences, give from 2 on",
        ),
        (
            (model, tmp_path, None, 4),
            "no recordings of ada in .*: give --work, or make them: mmspec train .*recipe.yaml --stages data",
        ),
        (
            (tmp_path, work / "data", None, 4),
            'prompts.jsonl must hold a line {"prompt": ..., "voice": ..., "held_out": ...}',
        ),
    ):
        with pytest.raises(MmspecError, match=text):
            held_out(*arguments)


def test_missing_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the extra, the error names it."""
    for name in ("whisper", "speechmos.dnsmos"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MmspecError, match=r"pip install 'mmspec\[eval\]'"):
        measures.Listener(tmp_path)


def test_error_rate() -> None:
    """No errors, nothing to doubt; equal shares have no spread; else the error of the ratio is the bootstrap's."""
    assert error_rate([0, 0], [3, 4]) == (0.0, 0.0) and error_rate([1, 2], [4, 8]) == (0.25, 0.0)
    rng = np.random.default_rng(0)
    words = rng.integers(3, 20, 400)
    errors = rng.binomial(words, 0.1)
    picks = rng.integers(0, 400, (2000, 400))
    rate, error = error_rate(errors.tolist(), words.tolist())
    assert rate == errors.sum() / words.sum()
    assert error == pytest.approx((errors[picks].sum(1) / words[picks].sum(1)).std(), rel=0.1)


def test_lines_have_all_columns() -> None:
    """A recording's line has dashes where a model's has figures."""
    cells = line(judge.row("original voice", [Take(torch.zeros(1))], [Rating("", 1, 4, 4.0, 3.0, 0.9)], None))
    assert len(cells) == len(judge.HEADS) and cells[2] == "25.0 ± 0.0 %" and cells[-1] == "–"


def test_speaker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An embedding has length one and nothing below zero, however short or long the audio is."""
    lstm, linear = torch.nn.LSTM(40, 256, 3), torch.nn.Linear(256, 256)
    state = {f"lstm.{key}": value for key, value in lstm.state_dict().items()}
    state |= {f"linear.{key}": value for key, value in linear.state_dict().items()} | {
        "similarity_weight": torch.ones(1)
    }
    monkeypatch.setattr(measures, "weights", lambda source, folder: {"model_state": state})
    speaker = measures.Speaker(tmp_path)
    for length in (800, 16000, 80000):
        embedding = speaker(torch.randn(length) * 0.1)
        assert embedding.shape == (256,) and float(embedding.min()) >= 0
        assert float(embedding.norm()) == pytest.approx(1, abs=1e-5)


def test_word_errors() -> None:
    """Case, marks, spelling and the way numbers are written are no errors; other, missing and added words are."""
    pytest.importorskip("jiwer")
    pytest.importorskip("whisper")
    assert word_errors("Hello there, David.", "hello there david") == (0, 3)
    assert word_errors("It costs twenty dollars in all.", "It costs $20 in all!")[0] == 0
    assert word_errors("the colour of the sky", "The color of the sky") == (0, 5)
    assert word_errors("one red cat sat", "a red dog sat down") == (3, 4) and word_errors("a red cat", "") == (3, 3)


def test_four_heads_are_fewer(model: Path) -> None:
    """The option limits the depth of the draft: no round commits more than four drafted tokens and the bonus."""
    pipe = TextToSpeechPipeline.from_pretrained(model, torch_dtype=torch.float64)
    longest = {}
    for label, used, rule in settings(pipe, ["vadusa"], (33,)):
        if label != "AR":
            used.beam, used.ranks, used.nodes = 1, 1, 6  # chains, whatever a pass costs on this machine
        longest[label] = max(pipe(PROMPTS[0], seed=1, drafter=used, acceptance=rule).stats.runs[0])
    assert longest == {"AR": 1, "vadusa, 6 heads, τ = 33": 7, "vadusa, 4 heads, τ = 33": 5}
