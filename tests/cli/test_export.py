"""`mmspec export`: what it writes, says and refuses."""

import json
from pathlib import Path

import pytest
from tiny import drafter as tiny_drafter
from tiny import image_target

from mmspec import cli


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as done:
        cli.main([*map(str, arguments)])
    captured = capsys.readouterr()
    return int(done.value.code or 0), captured.err if done.value.code else captured.out


def test_export(vision_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A drafter of a model by name: a folder with a card, which info and ask take; the answer stays the same."""
    out, model = tmp_path / "out", ["--model", vision_folder]
    code, text = run(capsys, "export", "msd", *model, "--format", "eagle", "--out", out, "--verifier", "some/model")
    assert code == 0 and text.startswith(
        f"{out} holds msd in the format eagle, which EAGLE's own code, SGLang and vLLM"
    )
    assert "not carried: the decoupled path of pictures" in text and "--verifier" not in text
    assert {path.name for path in out.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert json.loads(run(capsys, "info", out, "--target", vision_folder, "--json")[1])["fits"] is True
    options = [*model, "--dtype", "fp64", "--device", "cpu", "--quiet", "--temperature", 1, "--seed", 3]
    answers = [run(capsys, "ask", "what is this", *options, "--drafter", name) for name in ("none", out)]
    assert answers[0] == answers[1] and answers[0][0] == 0
    code, text = run(capsys, "export", "msd", *model, "--out", tmp_path / "other")
    assert code == 0 and f"its target is called {vision_folder} there: --verifier HUB_ID says" in text


def test_refused(
    vision_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, before the model is loaded, and nothing is written."""
    monkeypatch.setattr("mmspec.pipelines.pipeline", None)
    tiny_drafter("hawk", image_target()).save_pretrained(tmp_path / "hawk")  # type: ignore[attr-defined]
    out = tmp_path / "out"
    for arguments, message in (
        ([tmp_path / "hawk", "--out", out], "of the kind hawk has no format that other engines read"),
        (["msd", "--out", out, "--format", "speculators"], "is written in the format eagle, and not speculators"),
        (["msd", "--out", tmp_path], "is there already: give a folder that is not"),
        (["eagle9", "--out", out], "unknown drafter 'eagle9'"),
        (["lookup", "--out", out], "has no weights: there is nothing to export"),
    ):
        code, text = run(capsys, "export", *arguments, "--model", vision_folder)
        assert code == 2 and message in text and text.count("\n") == 1
    assert not out.exists()
