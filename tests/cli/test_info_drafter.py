"""`mmspec info FOLDER` of a drafter: what it is, for which target, and whether it fits."""

import json
from pathlib import Path

import pytest
import torch
from tiny import llama
from tiny_layouts import LAYER_CONFIG, write

from mmspec import cli


def say(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as done:
        cli.main(["info", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(done.value.code or 0), captured.out if not done.value.code else captured.err


def test_a_public_drafter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "speculators_model_type": "eagle3",
        "transformer_layer_config": LAYER_CONFIG,
        "eagle_aux_hidden_state_layer_ids": [0, 1, 2],
        "speculators_config": {"verifier": {"name_or_path": "some/model"}},
    }
    folder = write(tmp_path / "d", config, {"fc.weight": torch.ones(32, 96)})
    llama().save_pretrained(tmp_path / "m")
    code, text = say(capsys, folder)
    assert code == 0 and "EAGLE-3" in text and "some/model" in text and "--target MODEL" in " ".join(text.split())
    code, text = say(capsys, folder, "--target", tmp_path / "m", "--json")
    assert code == 0 and json.loads(text)["fits"] is True
    write(folder, config | {"eagle_aux_hidden_state_layer_ids": [0, 1, 5]}, {"fc.weight": torch.ones(32, 96)})
    assert "reads hidden states [0, 1, 5], the model has 0 to 2" in " ".join(
        json.loads(say(capsys, folder, "--target", tmp_path / "m", "--json")[1])["why"].split()
    )


def test_other_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is known and not read; one of mmspec's; a model, which is no drafter to be asked about."""
    known = write(tmp_path / "k", {"model_type": "gemma4_unified_assistant"}, {"x": torch.ones(1)})
    assert "which is not read" in say(capsys, known)[1]
    own = write(tmp_path / "o", {"kind": "medusa", "hidden_size": 64, "target": "abc"}, {"x": torch.ones(1)})
    llama().save_pretrained(tmp_path / "m")
    facts = json.loads(say(capsys, own, "--target", tmp_path / "m", "--json")[1])
    assert facts["layout"] == "mmspec, medusa" and facts["for"] == "weights abc" and not facts["fits"]
    assert "64 numbers, the model has 32" in facts["why"]
    code, text = say(capsys, tmp_path / "m", "--target", tmp_path / "m")
    assert code == 2 and "is none: give its folder" in text
