"""`mmspec bench` with prompts of one's own, two results side by side, and what is wrong with arguments."""

import json
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which width is fastest takes long to find out, and is of no interest here."""
    from mmspec.bench import image, own

    for module in (image, own):
        monkeypatch.setattr(module, "choose_min_query_len", lambda target, prompts, length: None)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red heart\na cat face\na dog\n")
    return path


def test_own_prompts(run, prompts: Path) -> None:
    """A file, how many of it, drafters and temperatures: results as JSON, table and plot; then both compared."""
    options = "--count 2 --drafters jacobi --temperature 0 1 --tokens 12 --dtype fp64 --out".split()
    code, out, err = run("bench", "--prompts", prompts, *options, "first")
    assert code == 0 and json.loads(out) == {"written": "first", "best": json.loads(out)["best"]}, err
    results = json.loads(Path("first/results.json").read_text())
    assert [prompt["prompt"] for prompt in results["prompts"]] == ["a red heart", "a cat face"]
    assert {(row["temperature"], row["dtype"]) for row in results["rows"]} == {(0.0, "fp64"), (1.0, "fp64")}
    drafted = [row for row in results["rows"] if row["drafter"] == "jacobi"]
    assert [(row["equal"], row["tokens"], len(row["prompts"])) for row in drafted] == [(2, 24, 2)] * 2
    assert Image.open("first/results.png").width > 1000 and Path("first/results.md").read_text().strip() in err
    (Path("second")).mkdir()
    changed = results | {"model": "another"}
    changed["provenance"] = results["provenance"] | {"device": "cuda:0"}
    for row in changed["rows"]:
        row["tokens_per_second"] *= 2
        for prompt in row["prompts"]:
            prompt["seconds"] /= 2
    Path("second/results.json").write_text(json.dumps(changed))
    code, out, err = run("bench", "--compare", "first/results.json", "second/results.json", model=False)
    assert code == 0 and out.count("2.00× [2.00, 2.00]") == 6 and out.startswith("A: first/results.json, own prompts")
    assert err.count("mmspec: warning: ") == 2 and "device differ: cpu and cuda:0" in err and "models differ" in err


def test_quick_and_numbers(run, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--quick takes one prompt; a number after --prompts is still the count of a suite, and says how to write it."""
    from mmspec.bench import image, own

    asked: list[tuple] = []

    def record(kind: str):
        def call(*arguments: object) -> None:
            asked.append((kind, *arguments))
            (arguments[3 if kind == "own" else 1] / "results.md").write_text("done")  # type: ignore[operator]

        return call

    monkeypatch.setattr(own, "run", record("own"))
    monkeypatch.setattr(image, "run", record("suite"))
    assert run("bench", "--prompts", prompts, "--quick", "--seed", 3)[0] == 0
    assert run("bench", "--prompts", prompts)[0] == 0
    assert [len(call[3]) for call in asked] == [1, 3] and asked[0][5:] == ([], (), ["bf16"], "cpu", 3, None, False, ())
    code, _, err = run("bench", "image", "--prompts", 6)
    assert code == 0 and "--prompts 6 is read as --count 6: --prompts takes a file" in err
    assert run("bench", "image", "--prompts", prompts, "--temperature", 0, 1, "--drafters", "jacobi")[0] == 0
    (numbered, given) = asked[2:]
    assert numbered[8] == 6 and numbered[9].prompts == () and numbered[5] == ["bf16", "fp32"]
    assert given[8] == 3 and len(given[9].prompts) == 3 and given[9].temperatures == (0.0, 1.0)
    Path("6").write_text("a red heart\n")
    assert run("bench", "image", "--prompts", 6)[0] == 0 and len(asked[-1][9].prompts) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vido"], "unknown suite 'vido': known are drafters, image, speech, vlm"),
        ([], "say what to measure: image, speech, vlm or drafters, or --model MODEL and --prompts FILE"),
        (["--prompts", "6"], "say what to measure"),
        (["--prompts", "gone.txt"], "cannot read gone.txt: No such file or directory"),
        (["--prompts-file", "prompts.txt"], "no option --prompts-file: did you mean --prompts"),
        (["--prompts", "prompts.txt", "--count", "4"], "--count 4 is more than the 3 prompts in prompts.txt"),
        (["--prompts", "prompts.txt", "--batch", "2"], "decoded one at a time: leave --batch out"),
        (["--prompts", "prompts.txt", "--temperature", "-1"], "temperature=-1.0 is out of range"),
        (["--prompts", "prompts.txt", "--tokens", "0"], "--count, --batch and --tokens must be 1 or more"),
        (["--prompts", "prompts.txt", "--dtype", "fp61"], "unknown dtype 'fp61'"),
        (["--prompts", "prompts.txt", "--drafters", "hwak"], "unknown drafter 'hwak'"),
        (["--prompts", "prompts.txt", "--drafters", "no/folder/here"], "no folder no/folder/here"),
        (["image", "--tokens", "4"], "a suite generates whole pictures"),
        (["image", "--nodes", "4", "65"], "--nodes are 1 to 64"),
        (["--compare", "a.json"], "--compare takes two files, and 1 are given"),
        (["--compare", "a.json", "b.json"], "measures nothing: leave suite, --model and --prompts out"),
    ],
)
def test_wrong_arguments(run, prompts: Path, arguments: list[str], message: str) -> None:
    code, _, err = run("bench", *arguments)
    assert code == 2 and err.splitlines()[-1].startswith("mmspec: error: ") and message in err
    assert [path.name for path in prompts.parent.iterdir()] == ["prompts.txt"]


def test_a_model_that_is_none(run, prompts: Path) -> None:
    code, _, err = run("bench", "--prompts", prompts, "--model", "emoji-46", model=False)
    assert code == 2 and "unknown model 'emoji-46'" in err


def test_drafters_that_do_not_fit(run, prompts: Path) -> None:
    """A drafter's folder of another target ends a suite too, in the place of a row that is missing."""
    folder = prompts.parent / "theirs"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"kind": "medusa", "hidden_size": 64}))
    for suite in ([], ["image"]):
        code, _, err = run("bench", *suite, "--prompts", prompts, "--dtype", "fp64", "--drafters", folder)
        assert code == 2 and "was trained for another target: its hidden_size is 64, this target's is 32" in err
        assert not list(Path("results").iterdir())
