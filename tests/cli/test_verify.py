"""`mmspec verify`: equality is found, every kind of difference is caught, and the text of every error."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from mmspec import drafters
from mmspec import verify as verification
from mmspec.drafters.jacobi import JacobiDrafter
from mmspec.targets import causal
from mmspec.targets.causal import CausalTarget


def test_verify(run, model_folder: Path, tmp_path: Path) -> None:
    """equality: every row in float64, drafters with plain decoding, and greedy plain decoding with `generate`."""
    settings = (
        "--prompts 2 --dtype fp64 --temperature 0 1 --guidance 1 3 --batch 1 2 --tokens 12 "
        "--drafters jacobi lookup --device cpu --json found.json"
    )
    code, out, _ = run("verify", model_folder, *settings.split(), model=False)
    rows = json.loads((tmp_path / "found.json").read_text())
    assert code == 0 and "2/2" in out and "n/a" in out and len(rows) == 2 * 2 * 2 * 2
    for row in rows:
        greedy = row["temperature"] == 0
        assert row["equal"] == row["rows"] == 2 and not row["partings"] + row["generate_partings"]
        assert (row["generate_equal"], row["generate_rows"]) == ((2, 2) if greedy else (0, 0))
        assert row["generate_skipped"] == ("" if greedy else "sampled")


def test_penalty_of_pictures(run, model_folder: Path, tmp_path: Path) -> None:
    """The penalty of transformers agrees with ours where there is no guidance, and is not compared where there is."""
    settings = (
        "--prompts 2 --dtype fp64 --temperature 0 --guidance 1 2 --repetition-penalty 1.5 --batch 1 --tokens 20 "
        "--drafters jacobi --device cpu --json found.json"
    )
    assert run("verify", model_folder, *settings.split(), model=False)[0] == 0
    alone, guided = json.loads((tmp_path / "found.json").read_text())
    assert alone["generate_equal"] == 2 and guided["generate_skipped"] == "penalty with guidance"


@pytest.mark.slow
def test_verify_speech(run, speech_folder: Path, tmp_path: Path) -> None:
    """Speech has no guidance, but repetition penalties; rows of a batch end at different places."""
    settings = (
        "--prompts 3 --dtype fp64 --temperature 0 1 --repetition-penalty 1 1.5 --batch 1 3 --drafters vadusa "
        "--tokens 60 --device cpu --json found.json"
    )
    code, _, _ = run("verify", speech_folder, *settings.split(), model=False)
    rows = json.loads((tmp_path / "found.json").read_text())
    assert code == 0 and [row["repetition_penalty"] for row in rows] == [1.0, 1.0, 1.5, 1.5] * 2
    assert all(row["equal"] == row["rows"] == 3 and row["guidance"] == 1.0 for row in rows)
    assert [row["generate_equal"] for row in rows] == [3] * 4 + [0] * 4
    code, _, err = run("verify", speech_folder, *"--guidance 2 --dtype fp64 --device cpu".split(), model=False)
    assert code == 2 and "takes no guidance: leave it out" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--prompts", "0"], "must be 1 or more"),
        (["--repetition-penalty", "0"], "repetition_penalty=0.0 is out of range"),
        (["--drafters", "jakobi"], "unknown drafter 'jakobi'"),
        (["--dtype", "fp61"], "unknown dtype 'fp61'"),
        (["--dtype"], "--dtype has no values: give at least one"),
        (["--json", "nowhere/found.json"], "there is no folder"),
        (["--guidance", "99", "--prompts", "1"], "out of range: give a number from 0 to 20"),
    ],
)
def test_verify_refuses(run, model_folder: Path, arguments: list[str], text: str) -> None:
    code, _, err = run("verify", model_folder, "--device", "cpu", *arguments, model=False)
    assert code == 2 and text in err


ONE_ROW = (
    "--prompts 1 --dtype float64 --guidance 1 --batch 1 --tokens 16 --drafters jacobi --device cpu --json found.json"
)


def test_a_biased_target_is_caught(run, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """negative control: a head that favours a token misleads every drafter alike, but not the model's `generate`."""
    honest = CausalTarget.logits

    def biased(self, hidden, *rest):
        return honest(self, hidden, *rest) + 20.0 * (torch.arange(self.vocabulary_size) == 3)

    monkeypatch.setattr(CausalTarget, "logits", biased)
    code, _, err = run("verify", model_folder, *ONE_ROW.split(), "--temperature", 0, model=False)
    assert code == 2 and "does not give its own logits" in err, "the probe refuses it before"
    monkeypatch.setattr(causal, "probe", lambda *arguments: None)
    code, _, err = run("verify", model_folder, *ONE_ROW.split(), "--temperature", 0, model=False)
    (row,) = json.loads((tmp_path / "found.json").read_text())
    assert code == 1 and row["equal"] == 1 and row["generate_equal"] == 0
    (parting,) = row["generate_partings"]
    assert parting["expected"] != parting["found"] and parting["margin"] > 0


class WrongRoot(JacobiDrafter):
    """BIASED: the target is made to read another token than the one that was committed."""

    def draft(self, state, noise, limit):
        tree = super().draft(state, noise, limit)
        return replace(tree, tokens=torch.cat([(tree.tokens[:, :1] + 1) % 24, tree.tokens[:, 1:]], 1))


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_biased_drafter_is_caught(
    run, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temperature: int
) -> None:
    """negative control: a drafter that changes what the target reads parts from plain decoding; the exit code is 1."""
    monkeypatch.setattr(drafters, "load", lambda *arguments: WrongRoot())
    code, out, _ = run("verify", model_folder, *ONE_ROW.split(), "--temperature", temperature, model=False)
    (row,) = json.loads((tmp_path / "found.json").read_text())
    assert code == 1 and "0/1" in out and row["equal"] == 0 and row["partings"][0]["position"] > 0
    assert row["generate_equal"] == (1 if temperature == 0 else 0)


def test_a_biased_rule_is_caught(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """negative control: a lossy rule in the place of the exact one parts from plain decoding."""
    prompts = [{"prompt": "a red heart"}, {"prompt": "a cat face"}]
    settings = (model_folder, ["fp64"], [1.0], [1.0], [1.0], [2], ["jacobi"], prompts, 0, "cpu", 48)
    (exact,) = verification.verify(*settings)
    lossy_generate = partial(verification.generate, rule="tolerance:3")
    honest = verification.generate
    monkeypatch.setattr(
        verification,
        "generate",
        lambda *arguments, **options: (honest if "on_accept" in options else lossy_generate)(*arguments, **options),
    )
    (lossy,) = verification.verify(*settings)
    assert exact.equal == 2 and lossy.equal < 2
