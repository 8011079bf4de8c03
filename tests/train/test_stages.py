"""`mmspec train DRAFTER`: prompts become a drafter, for every kind and family; what is killed goes on."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_janus import save_janus
from tiny_readers import save_reader
from tiny_speakers import save_orpheus

from mmspec import drafters
from mmspec.cli import main, parse
from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.errors import MmspecError
from mmspec.pipelines import pipeline, task_of
from mmspec.train import corpus as corpus_module
from mmspec.train import drafter as drafter_module
from mmspec.train.plan import make_plan
from mmspec.train.stages import Training, check_output

# Every test trains a drafter, so all is short.
SHORT = ["--steps", "2", "--at-once", "4", "--held-out", "1", "--batch", "2", "--max-new-tokens", "12"]
SHORT += ["--dtype", "fp32", "--device", "cpu"]
MEDUSA = ["--option", "neighbours=[[0,2],[0,3]]"]


def train(kind: str, model: Path, folder: Path, *more: str, count: int = 9, rows: list[dict] | None = None) -> Path:
    """The folder of a drafter that the command has trained on short prompts."""
    folder.mkdir(exist_ok=True)
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows or [{"prompt": f"a cat {number}"} for number in range(count)])
    )
    paths = ["--model", str(model), "--prompts", str(folder / "prompts.jsonl"), "--work", str(folder / "work")]
    with pytest.raises(SystemExit) as end:
        main(["train", kind, *paths, "--out", str(folder / "out"), *SHORT, *more])
    assert end.value.code == 0
    return folder / "out"


def check_equal(model: Path, drafter: Path, length: int = 12) -> None:
    """The drafter loads by its folder and gives the tokens of plain decoding, sampled and greedy."""
    pipe = pipeline(task_of(model), model, dtype="fp64", device="cpu")
    prompts, stop = pipe.encode_examples([{"prompt": "a cat"}, {"prompt": "a dog"}])
    prompts = prompts.select(slice(None), 2.0 if prompts.unconditional else 1.0)
    for temperature in (0.0, 1.0):
        sampling = SamplingOptions(temperature)
        stop_short = Stop(min(length, stop.length), stop.eos)
        plain = generate(pipe.target, prompts, 2, stop_short, sampling=sampling, seeds=3).tokens
        loaded = drafters.load(str(drafter), pipe.folder, pipe.target)
        assert generate(pipe.target, prompts, 2, stop_short, loaded, sampling=sampling, seeds=3).tokens == plain


@pytest.mark.parametrize("kind", [pytest.param("medusa", marks=pytest.mark.slow), "hawk", "hawk-path"])
def test_pictures(kind: str, model_folder: Path, tmp_path: Path) -> None:
    """A drafter of a picture model, with its report, card and curve."""
    options = ["--option", "width=16", "inner=16", "depth=3"] if kind == "hawk-path" else []
    out = train(kind, model_folder, tmp_path, *options)
    check_equal(model_folder, out)
    report = json.loads((out / "report.json").read_text())
    names = [result["name"] for result in report["results"]]
    assert names == ["none", "jacobi", "lookup", "this drafter"]
    assert report["data"]["prompts"] == {"validation": 1, "test": 1, "train": 7} and len(report["training"]["log"]) == 2
    assert all(line["acceptance_length"] >= 1 for line in report["training"]["log"])
    assert "| this drafter |" in (out / "README.md").read_text() and (out / "curve.png").stat().st_size > 1000


def test_speech(speech_folder: Path, tmp_path: Path) -> None:
    """Heads that a table joins."""
    out = train("vadusa", speech_folder, tmp_path, "--option", "rank=4", "inner=8")
    assert "table.before.weight" in load_file(out / "model.safetensors")
    check_equal(speech_folder, out)


def test_blocks(speech_folder: Path, vision_folder: Path, tmp_path: Path) -> None:
    """Blocks with and without a table, for voices and questions, which read several layers of the target."""
    out = train("dspark", speech_folder, tmp_path / "voice", "--option", "block=3", "rank=4", "tv=0.5")
    config = json.loads((out / "config.json").read_text())
    assert config["from_anchor"] and len(config["beta"]) == 3 and config["feature_layers"]
    check_equal(speech_folder, out)
    out = train("dflash", vision_folder, tmp_path / "questions", "--option", "block=3", "--vocabulary", "20")
    assert len(json.loads((out / "config.json").read_text())["tokens"]) == 20
    check_equal(vision_folder, out)


def test_large_targets(tmp_path: Path) -> None:
    """A target whose layers wait on the disk for their turn, by accelerate's hooks, is trained for like any other."""
    folder = save_orpheus(tmp_path / "model")
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    near = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    places = near | {f"model.layers.{number}": "disk" for number in range(layers)}
    loading: dict = {"device_map": places, "offload_folder": str(tmp_path / "offload")}
    pipe = pipeline(task_of(folder), folder, dtype="fp32", device="cpu", **loading)
    assert {str(weight.device) for weight in pipe.transformer.model.layers.parameters()} == {"meta"}
    rows = [{"prompt": f"a cat {number}"} for number in range(9)]
    settings = corpus_module.CorpusSettings(held_out=1, length=12, batch=4)
    corpus = corpus_module.Corpus(pipe, rows, settings, tmp_path / "work")
    out = Training(corpus, drafter_module.DrafterSettings.of("vadusa", steps=2, batch=2), tmp_path / "out").run()
    check_equal(folder, out)


def test_a_map_of_devices(tmp_path: Path) -> None:
    folder = save_orpheus(tmp_path / "model")
    check_equal(folder, train("medusa", folder, tmp_path, *MEDUSA, "--device-map", "cpu"))


def test_questions(vision_folder: Path, tmp_path: Path) -> None:
    """With pictures and without, and answers of the data."""
    from PIL import Image

    (tmp_path / "red.png").parent.mkdir(exist_ok=True)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    rows = [
        {"prompt": f"what is {number}?"} | ({"image": "red.png"} if number % 2 else {"answer": "a cat"})
        for number in range(9)
    ]
    more = ["--answers", "data", "--option", "depth=3", "--vocabulary", "20"]
    out = train("msd", vision_folder, tmp_path, *more, rows=rows)
    check_equal(vision_folder, out)
    assert len(json.loads((out / "config.json").read_text())["tokens"]) == 20


@pytest.mark.parametrize("family", [pytest.param("janus", marks=pytest.mark.slow), "orpheus", "qwen3_vl"])
def test_families(family: str, tmp_path: Path) -> None:
    """Models of transformers, by their folders."""
    if family == "qwen3_vl":
        pytest.importorskip("torchvision")
    model = tmp_path / "model"
    kind, more = "medusa", MEDUSA
    if family == "janus":
        save_janus(model)
    elif family == "orpheus":
        save_orpheus(model)
    else:
        save_reader("qwen3_vl", model)
        kind, more = "msd", ["--option", "depth=2"]
    check_equal(model, train(kind, model, tmp_path / "run", *more))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def whole(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drafter whose training was not interrupted."""
    return train("medusa", model_folder, tmp_path_factory.mktemp("whole"), *MEDUSA)


@pytest.mark.parametrize(
    "stage", ["train", *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("generate", "capture", "calibrate"))]
)
def test_what_is_killed_goes_on(
    stage: str, whole: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that dies in a stage and is started again ends with the drafter of one that did not die."""
    module, name = {
        "generate": (corpus_module, "generate"),
        "capture": (corpus_module, "read_features"),
        "train": (drafter_module, "vary"),
        "calibrate": (drafter_module.TrainedDrafter, "constructor_arguments"),
    }[stage]
    working, calls = getattr(module, name), []

    def dying(*args, **kwargs):
        calls.append(name)
        if len(calls) == {"generate": 3, "capture": 3, "train": 3, "calibrate": 1}[stage]:
            raise KeyboardInterrupt
        return working(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, dying)
        with pytest.raises((SystemExit, AssertionError)):
            train("medusa", model_folder, tmp_path / "killed", *MEDUSA)
    assert not (tmp_path / "killed" / "out" / "report.json").exists()
    again = train("medusa", model_folder, tmp_path / "killed", *MEDUSA)
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(again).items())
    assert json.loads((whole / "config.json").read_text()) == json.loads((again / "config.json").read_text())


def test_online_features_are_those_of_the_disk(whole: Path, model_folder: Path, tmp_path: Path) -> None:
    """The weights agree but for the rounding of other batches."""
    online = weights(train("medusa", model_folder, tmp_path, "--features", "online", *MEDUSA))
    assert not any((tmp_path / "work").rglob("features/00003.safetensors"))
    for name, value in weights(whole).items():
        torch.testing.assert_close(value.float(), online[name].float(), atol=1e-2, rtol=1e-2)


def test_disk_is_as_planned(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan is printed, and nothing is trained; afterwards the features take what it said, within 10 %."""
    train("medusa", model_folder, tmp_path, "--plan", count=30)
    assert not (tmp_path / "out").exists()
    said = " ".join(capsys.readouterr().err.split())
    assert "features on disk" in said and "sequences" in said and "memory" in said
    arguments = ["--model", str(model_folder), "--prompts", str(tmp_path / "prompts.jsonl")]
    training = parse(["train", "medusa", *arguments, "--work", str(tmp_path / "work"), *SHORT])._load()
    planned = make_plan(training)
    assert planned.estimated and planned.sequences == 29  # 1 of 30 is for the report
    training.run(["generate", "capture"])
    files = list(training.corpus.feature_folder(training.reading).iterdir())
    assert sum(path.stat().st_size for path in files) == pytest.approx(planned.disk, rel=0.1)


def losses(folder: Path) -> list[float]:
    (log,) = (folder / "work").glob("*/*/log.jsonl")
    return [json.loads(line)["loss"] for line in log.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("medusa", marks=pytest.mark.sweep), "msd"])
def test_two_processes_learn_as_one(kind: str, model_folder: Path, vision_folder: Path, tmp_path: Path) -> None:
    """The loss curve of two processes is that of one."""
    model = vision_folder if kind == "msd" else model_folder
    more = ["--option", "depth=2"] if kind == "msd" else []
    train(kind, model, tmp_path / "one", *more)
    (tmp_path / "two").mkdir()
    prompts = tmp_path / "one" / "prompts.jsonl"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29511"),
        *("-m", "mmspec", "train", kind, "--model", str(model), "--prompts", str(prompts), *SHORT, *more),
        *("--work", str(tmp_path / "two" / "work"), "--out", str(tmp_path / "two" / "out")),
    ]
    result = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"│ processes +│ (\d)", result.stderr) == ["2"]  # one of them speaks, and knows of the other
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train", "medusa"], "needs --model, the target, and --prompts"),
        (["train", "medusa", "--model", "emoji-64"], "--model, the target, and --prompts"),
        (["train", "jacobi", "--model", "emoji-64", "--prompts", "PROMPTS"], "drafter that is trained"),
        (["train", "hawk", "--model", "wren-86", "--prompts", "PROMPTS"], "fill no grid"),
        (["train", "dspark", "--model", "emoji-64", "--prompts", "PROMPTS"], "drafts without guidance, and this"),
        (["train", "medusa", "--model", "emoji-64", "--prompts", "FEW"], "are too few to train on"),
        (["train", "medusa", "--model", "emoji-64", "--prompts", "PROMPTS", "--steps", "0"], "steps must be 1 or more"),
        (["train", "medusa", "--model", "emoji-64", "--prompts", "PROMPTS", "--option", "x"], "is not NAME=VALUE"),
        (["train", "medusa", "--model", "emoji-64", "--prompts", "PROMPTS", "--features", "x"], "--features"),
        (["train", "medusa", "--model", "emoji-64", "--prompts", "PROMPTS", "--answers", "x"], "own or data"),
    ],
)
def test_wrong_input(
    arguments: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says what is wrong, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "PROMPTS").write_text("a cat\na dog\na bird\na fish\na cow\na pig\n")
    (tmp_path / "FEW").write_text("a cat\na dog\n")
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--dtype", "fp32", "--device", "cpu", "--at-once", "1", "--max-new-tokens", "3"])
    assert end.value.code == 2
    assert text in " ".join(capsys.readouterr().err.split())


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    """A model, other files, a file, a place that cannot be written to: refused before anything is done."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "drafter").mkdir()
    (tmp_path / "drafter" / "config.json").write_text('{"kind": "medusa"}')
    (tmp_path / "file").write_text("mine")
    check_output(tmp_path / "new" / "folder", "medusa")
    check_output(tmp_path / "drafter", "medusa")
    for path, kind in (("model", "medusa"), ("drafter", "hawk"), ("file", "medusa"), ("file/below", "medusa")):
        with pytest.raises(MmspecError, match="holds no drafter|cannot write"):
            check_output(tmp_path / path, kind)
    assert not (tmp_path / "new").exists()
