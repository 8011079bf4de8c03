"""The vision-language benchmark: every task and temperature, all entrants, fields and files; verify and the errors of
both.
"""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mmspec import cli

pytest.importorskip("matplotlib")

pytestmark = pytest.mark.slow

LINES = [
    {"prompt": "what is this?", "kind": "what", "image": "samples/0.png"},
    {"prompt": "describe it.", "kind": "describe", "image": "samples/1.png"},
    {"prompt": "and how many?", "kind": "follow-up", "image": "samples/0.png", "before": [["what is it?", "a cat."]]},
]


@pytest.fixture(scope="module")
def model(vision_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(vision_folder, tmp_path_factory.mktemp("vlm") / "model"))
    (folder / "samples").mkdir()
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (32, 32), colour).save(folder / "samples" / f"{number}.png")
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return folder


@pytest.fixture
def run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main([*map(str, arguments), "--device", "cpu"])
        return int(caught.value.code or 0), *capfd.readouterr()

    return call


def test_bench(run, model: Path) -> None:
    """Six tables, each with plain decoding, transformers and every drafter; greedy rows of all lossless entrants have
    as many tokens.
    """
    code, out, err = run("bench", "vlm", "--model", model, "--quick", "--dtype", "fp64", "--out", "found")
    assert code == 0, err
    found = json.loads(Path("found/results.json").read_text())
    settings = dict.fromkeys(row["setting"] for row in found["rows"])
    assert len(settings) == 6 and {row["task"] for row in found["rows"]} == {
        "descriptions",
        "short answers",
        "several turns",
    }
    for setting in settings:
        rows = {row["label"]: row for row in found["rows"] if row["setting"] == setting}
        assert rows.keys() == {
            "AR, our loop",
            "transformers.generate",
            "transformers, prompt lookup",
            "lookup",
            "jacobi",
            "MSD",
        }
        assert rows["AR, our loop"]["speedup"] == 1.0 and all(
            row["seconds_to_first_token"] > 0 for label, row in rows.items() if "prompt lookup" not in label
        )
        assert rows["transformers, prompt lookup"]["mean_acceptance_length"] is None
        ours = [row["tokens"] for label, row in rows.items() if "transformers" not in label or "T = 0" in setting]
        assert len(set(ours)) == 1
    assert "first token" in Path("found/results.md").read_text() and json.loads(out)["written"] == "found"
    assert Image.open("found/results.png").width > 400


def test_verify(run, model: Path) -> None:
    """Every line of the list, chats that go on too, alone and in a batch."""
    settings = "--prompts 3 --dtype fp64 --temperature 0 1 --batch 1 3 --drafters msd jacobi --json found.json"
    code, _, err = run("verify", model, *settings.split())
    rows = json.loads(Path("found.json").read_text())
    assert code == 0 and len(rows) == 8 and all(row["equal"] == 3 for row in rows), err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "--guidance", "2"], "takes no guidance"),
    ],
)
def test_refused(run, model: Path, arguments: list[str], message: str) -> None:
    place = [model] if arguments[0] == "verify" else ["--model", model]
    code, _, err = run(
        *arguments[:1],
        *(place if arguments[0] == "verify" else []),
        *arguments[1:],
        *([] if arguments[0] == "verify" else place),
    )
    assert code == 2 and message in err


def test_a_model_without_questions(run, vision_folder: Path) -> None:
    """It is asked the bundled model's, about the pictures that lie there."""
    code, _, err = run(
        "verify",
        vision_folder,
        *"--prompts 2 --tokens 4 --dtype fp64 --temperature 0 --drafters jacobi --json f.json".split(),
    )
    assert code == 0 and {row["equal"] for row in json.loads(Path("f.json").read_text())} == {2}, err


def test_a_broken_list_of_questions(run, model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "prompts.jsonl").write_text("{")
    for arguments in (["bench", "vlm", "--model", folder], ["verify", folder]):
        code, _, err = run(*arguments)
        assert code == 2 and "prompts.jsonl must hold a line" in err
