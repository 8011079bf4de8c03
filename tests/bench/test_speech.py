"""The speech benchmark and the measures of its quality: fields, tables, plots, files, and the text of errors."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mmspec import cli
from mmspec.bench import suite
from mmspec.bench.suite import Transformers
from mmspec.drafters.hawk_path import HawkPathDrafter
from mmspec.drafters.medusa import MedusaDrafter
from mmspec.drafters.vadusa import VadusaDrafter
from mmspec.errors import MmspecError
from mmspec.pipelines.text_to_speech import TextToSpeechPipeline
from mmspec.targets.causal import Prompts

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("torchaudio")
pytest.importorskip("matplotlib")

from mmspec.bench import speech  # noqa: E402
from mmspec.codecs.mel import RATE  # noqa: E402
from recipes.wren_86 import judge as speech_quality  # noqa: E402
from recipes.wren_86.judge import Heard, Take, held_out, line, ratio, settings  # noqa: E402

FIELDS = {
    *"label setting drafter acceptance lossless dtype device batch guidance tokens tokens_per_second".split(),
    *"mean_acceptance_length nodes_per_round cache_bytes seconds speedup efficiency".split(),
}
SPOKEN = {"temperature", "audio_seconds", "decoding_seconds", "real_time_factor", "seconds_to_first_audio", "ended"}


@pytest.fixture(scope="module")
def model(speech_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random speech model with every kind of drafter, VADUSA's with six heads."""
    folder = Path(shutil.copytree(speech_folder, tmp_path_factory.mktemp("bench") / "model"))
    width, tokens = 32, 33
    accuracies = [[0.5 / (depth + rank + 1) for rank in range(8)] for depth in range(6)]
    shutil.rmtree(folder / "drafters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = {
            "vadusa": VadusaDrafter(width, heads=6, accuracies=accuracies),
            "medusa": MedusaDrafter(width, 0, [(0, 2), (0, 3), (0, 4)]),
            "hawk-path": HawkPathDrafter(width, tokens, width=16, inner=32, depth=4),
        }
    for name, drafter in built.items():
        drafter.save_pretrained(folder / "drafters" / name)
    return folder


@pytest.fixture
def run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    """Run `mmspec bench` in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main(["bench", *map(str, arguments), "--device", "cpu"])
        return int(caught.value.code or 0), *capfd.readouterr()

    return call


def test_every_entrant(run, model: Path, tmp_path: Path) -> None:
    """Every entrant has a row with all fields, in JSON, table and plot; lossless ones in fp64 say what plain decoding
    says.
    """
    code, out, err = run("speech", "--model", model, "--prompts", 2, "--dtype", "fp64", "--out", "found")
    assert code == 0 and json.loads(out.splitlines()[-1])["written"] == "found"
    results = json.loads((tmp_path / "found" / "results.json").read_text())
    rows = {row["label"]: row for row in results["rows"]}
    assert list(rows) == [speech.CASES[0].label, Transformers.label, *(one.label for one in speech.CASES[1:])]
    plain = rows["AR, our loop"]
    for row in rows.values():
        assert row.keys() == FIELDS | SPOKEN and row["batch"] == 1 and sum(row["ended"].values()) == 2
        assert row["seconds_to_first_audio"] > 0 and row["real_time_factor"] > 0 and row["audio_seconds"] > 0
        if row["lossless"] and row["drafter"] != "transformers":
            assert (row["tokens"], row["audio_seconds"], row["ended"]) == (
                plain["tokens"],
                plain["audio_seconds"],
                plain["ended"],
            )
    assert plain["speedup"] == 1 and not rows["vadusa, tolerance 2"]["lossless"]
    assert results["suite"] == "speech" and {"commit", "torch", "processor", "threads"} <= results["provenance"].keys()
    text = (tmp_path / "found" / "results.md").read_text()
    assert all(row["label"] in text for row in rows.values()) and "real-time factor" in text and "guidance" not in text
    assert text.strip() in err and Image.open(tmp_path / "found" / "results.png").width > 400


def test_quick_and_batches(run, model: Path, tmp_path: Path) -> None:
    """--quick has five entrants beside transformers, in bf16; batches have a table each and leave transformers out."""
    assert run("speech", "--quick", "--model", model, "--batch", 1, 3, "--prompts", 3)[0] == 0
    rows = json.loads((tmp_path / "results" / "results.json").read_text())["rows"]
    assert [row["label"] for row in rows if row["batch"] == 3] == list(speech.QUICK)
    assert len(rows) == 2 * len(speech.QUICK) + 1 and {row["dtype"] for row in rows} == {"bf16"}
    assert all(sum(row["ended"].values()) == 3 for row in rows)
    assert (tmp_path / "results" / "results.md").read_text().count("## bf16, batch") == 2


def test_image_suite(run, model_folder: Path, tmp_path: Path) -> None:
    """The image suite shares rows and report: its own fields, its tables by guidance, transformers second."""
    assert run("image", "--quick", "--model", model_folder)[0] == 0
    rows = json.loads((tmp_path / "results" / "results.json").read_text())["rows"]
    assert [row["label"] for row in rows] == ["AR, our loop", Transformers.label, "jacobi"]
    assert all(row.keys() == FIELDS | {"seconds_per_image"} for row in rows)
    text = (tmp_path / "results" / "results.md").read_text()
    assert ", guidance " in text and "real-time factor" not in text


def test_entrants_that_do_not_fit(model: Path, tmp_path: Path) -> None:
    """Four of four heads, and a sparse tree without accuracies, are no entrants of their own."""
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    path = folder / "drafters" / "vadusa" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"heads": 4, "accuracies": None}))
    gone = {one.label for one in speech.CASES if not speech.fits(one, folder)}
    assert gone == {"vadusa, sparse tree", "vadusa, 4 heads"} and all(speech.fits(one, model) for one in speech.CASES)


def test_four_heads_are_fewer(model: Path) -> None:
    """The option limits the depth of the draft: no round commits more than four drafted tokens and the bonus."""
    pipe = TextToSpeechPipeline.from_pretrained(model, torch_dtype=torch.float64)
    longest = {}
    for label, used, rule in settings(pipe, ["vadusa"], (33,)):
        if label != "AR":
            used.beam, used.ranks, used.nodes = 1, 1, 6  # chains, whatever a pass costs on this machine
        longest[label] = max(pipe(speech.PROMPTS[0], seed=1, drafter=used, acceptance=rule).stats[0].runs[0])
    assert longest == {"AR": 1, "vadusa, 6 heads, τ = 33": 7, "vadusa, 4 heads, τ = 33": 5}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["speech", "--model", "wren-34"], "unknown model 'wren-34'"),
        (["speech", "--prompts", "0"], "must be 1 or more"),
        (["speech", "--dtype", "fp61"], "unknown dtype 'fp61'"),
    ],
)
def test_wrong_arguments(run, tmp_path: Path, arguments: list[str], text: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2 and err.startswith("mmspec: error: ") and text in err and not list(tmp_path.iterdir())


def test_wrong_models(run, model: Path, model_folder: Path) -> None:
    """A model of another kind is named as one."""
    code, _, err = run("speech", "--quick", "--model", model_folder)
    assert code == 2 and "not a TextToSpeechPipeline" in err


def test_plain_decoding_at_its_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The width whose best rounds are quickest, however long others take; the prompt is not counted."""
    target, turns = SimpleNamespace(min_query_len=9), iter(range(100))

    def rounds(target, prompts, rows, stop, stats):
        stats.prefill = stats.total = 5.0 / target.min_query_len
        stats.runs.append([])
        for _ in range(stop.length):
            stats.runs[0].append(1)
            stats.total += {1: 3.0, 2: 1.0, 4: 2.0}[target.min_query_len] + (10.0 if next(turns) % 4 == 1 else 0.0)
            yield

    monkeypatch.setattr(suite, "stream", rounds)
    suite.choose_min_query_len(target, Prompts([[1]]), 1)
    assert target.min_query_len == 2 and next(turns) == 15


def test_nothing_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No audio at all is an error and no real-time factor."""
    monkeypatch.setattr(speech, "decode_audio", lambda pipe, tokens: (0.0, 0.0))
    with pytest.raises(
        MmspecError, match="AR, our loop: the model said nothing; give more --prompts or another --seed"
    ):
        speech.run_setting(model, "fp32", "cpu", 1, 1, 0, speech.CASES[:1])


@pytest.fixture(scope="module")
def work(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training folder with four held-out recordings of each voice, which are noise; the model's folder lists them."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "data").mkdir()
    listed, random = [], np.random.default_rng(0)
    for voice in ("ada", "ben"):
        rows, end = [], 0
        for number, text in enumerate(speech.PROMPTS[:5]):
            length = RATE // 2 + 1000 * number
            rows.append(
                dict(text=text, phonemes="", voice=voice, held_out=number < 4, start=end, end=end + length, onsets=[])
            )
            end += length
        random.integers(-9000, 9000, end, np.int16).tofile(folder / "data" / f"{voice}.pcm")
        (folder / "data" / f"{voice}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        listed += [
            json.dumps({"prompt": row["text"], "voice": voice, "held_out": True}) for row in rows if row["held_out"]
        ]
    (model / "prompts.jsonl").write_text("\n".join(listed) + "\n")
    return folder


class Deaf:
    """A listener without weights: hears nothing in lossy speech, else everything."""

    origin = {"ear": "none"}

    def __init__(self, folder: Path):
        self.calls = 0

    def voice(self, audio: torch.Tensor, rate: int) -> torch.Tensor:
        return torch.ones(1)

    def __call__(self, audio: torch.Tensor, rate: int, text: str, voice: torch.Tensor) -> Heard:
        assert audio.ndim == 1 and len(audio) and rate == RATE
        self.calls += 1
        words = len(text.split())
        return Heard("", words if self.calls > 16 else 0, words, 4.0, 3.0, 0.9)


def test_quality(model: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings, codec, plain decoding and each tolerance with six and four heads, in JSON, table and samples that say
    what they are.
    """
    monkeypatch.setattr(speech_quality, "Listener", Deaf)
    speech_quality.main(
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
    assert {"commit", "torch", "processor"} <= results["provenance"].keys() and results["measures"] == Deaf.origin
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
    out.
    """
    found = held_out(model, work / "data", None, 4)
    assert [one.voice for one, _ in found] == ["ada", "ben"] * 2 and len({one.text for one, _ in found}) == 4
    assert all(
        one.voice == other.voice and one.text != other.text and one.held_out and other.held_out for one, other in found
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
    import sys

    for name in ("whisper", "speechmos.dnsmos"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MmspecError, match=r"pip install 'mmspec\[eval\]'"):
        speech_quality.Listener(tmp_path)


def test_ratio() -> None:
    """No errors, nothing to doubt; equal shares have no spread; else the error of the ratio is the bootstrap's."""
    assert ratio([0, 0], [3, 4]) == (0.0, 0.0) and ratio([1, 2], [4, 8]) == (0.25, 0.0)
    random = np.random.default_rng(0)
    words = random.integers(3, 20, 400)
    errors = random.binomial(words, 0.1)
    picks = random.integers(0, 400, (2000, 400))
    found, error = ratio(errors.tolist(), words.tolist())
    assert found == errors.sum() / words.sum()
    assert error == pytest.approx((errors[picks].sum(1) / words[picks].sum(1)).std(), rel=0.1)


def test_lines_have_all_columns() -> None:
    """A recording's line has dashes where a model's has figures."""
    row = speech_quality.row("original voice", [Take(torch.zeros(1))], [Heard("", 1, 4, 4.0, 3.0, 0.9)], None)
    cells = line(row)
    assert len(cells) == len(speech_quality.HEADS) and cells[2] == "25.0 ± 0.0 %" and cells[-1] == "–"


def test_speaker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An embedding has length one and nothing below zero, however short or long the audio is."""
    lstm, linear = torch.nn.LSTM(40, 256, 3), torch.nn.Linear(256, 256)
    state = {f"lstm.{key}": value for key, value in lstm.state_dict().items()}
    state |= {f"linear.{key}": value for key, value in linear.state_dict().items()} | {
        "similarity_weight": torch.ones(1)
    }
    monkeypatch.setattr(speech_quality, "weights", lambda source, folder: {"model_state": state})
    speaker = speech_quality.Speaker(tmp_path)
    for length in (800, 16000, 80000):
        found = speaker(torch.randn(length) * 0.1)
        assert found.shape == (256,) and float(found.norm()) == pytest.approx(1, abs=1e-5) and float(found.min()) >= 0


def test_word_errors() -> None:
    """Case, marks, spelling and the way numbers are written are no errors; other, missing and added words are."""
    pytest.importorskip("jiwer")
    pytest.importorskip("whisper")
    errors = speech_quality.word_errors
    assert errors("Hello there, David.", "hello there david") == (0, 3)
    assert errors("It costs twenty dollars in all.", "It costs $20 in all!")[0] == 0
    assert errors("the colour of the sky", "The color of the sky") == (0, 5)
    assert errors("one red cat sat", "a red dog sat down") == (3, 4) and errors("a red cat", "") == (3, 3)
