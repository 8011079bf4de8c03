"""The speech benchmark and the measures of its quality: fields, tables, plots, files, and the text of errors."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from mmspec import cli
from mmspec.bench import suite
from mmspec.bench.suite import TransformersBaseline
from mmspec.drafters.hawk_path import HawkPathDrafter
from mmspec.drafters.medusa import MedusaDrafter
from mmspec.drafters.vadusa import VadusaDrafter
from mmspec.errors import MmspecError
from mmspec.targets.causal import Prompts

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("torchaudio")
pytest.importorskip("matplotlib")

from mmspec.bench import speech  # noqa: E402

pytestmark = pytest.mark.slow

FIELDS = {
    *"label setting drafter acceptance lossless dtype device batch guidance tokens tokens_per_second".split(),
    *"mean_acceptance_length nodes_per_round cache_bytes seconds speedup efficiency over_generate".split(),
    *"temperature compiled operations reads by_nodes".split(),
}
SPOKEN = {"audio_seconds", "decoding_seconds", "real_time_factor", "seconds_to_first_audio", "ended"}


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
            "vadusa-table": VadusaDrafter(width, heads=4, vocabulary=tokens, rank=4, inner=8),
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
    code, out, err = run("speech", "--model", model, "--count", 2, "--dtype", "fp64", "--out", "found")
    assert code == 0 and json.loads(out.splitlines()[-1])["written"] == "found"
    results = json.loads((tmp_path / "found" / "results.json").read_text())
    rows = {row["label"]: row for row in results["rows"]}
    plain_case, *others = (one for one in speech.CASES if one.drafter != "dspark")  # the model has none
    assert list(rows) == [plain_case.label, TransformersBaseline.label, *(one.label for one in others)]
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
    assert run("speech", "--quick", "--model", model, "--batch", 1, 3, "--count", 3)[0] == 0
    rows = json.loads((tmp_path / "results" / "results.json").read_text())["rows"]
    assert [row["label"] for row in rows if row["batch"] == 3] == list(speech.QUICK)
    assert len(rows) == 2 * len(speech.QUICK) + 1 and {row["dtype"] for row in rows} == {"bf16"}
    assert all(sum(row["ended"].values()) == 3 for row in rows)
    assert (tmp_path / "results" / "results.md").read_text().count("## bf16, batch") == 2


def test_image_suite(run, model_folder: Path, tmp_path: Path) -> None:
    """The image suite shares rows and report: its own fields, its tables by guidance, transformers second."""
    assert run("image", "--quick", "--model", model_folder)[0] == 0
    rows = json.loads((tmp_path / "results" / "results.json").read_text())["rows"]
    assert [row["label"] for row in rows] == ["AR, our loop", TransformersBaseline.label, "jacobi"]
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


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["speech", "--model", "wren-34"], "unknown model 'wren-34'"),
        (["speech", "--count", "0"], "must be 1 or more"),
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
    target, turns = SimpleNamespace(min_query_len=9, compiled=False), iter(range(100))

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
    with pytest.raises(MmspecError, match="AR, our loop: the model said nothing; give more prompts or another --seed"):
        speech.run_setting(model, "fp32", "cpu", 1, 1, 0, speech.CASES[:1])
