"""A `config.json` that is damaged, or of a family that does not chat, is told by that file alone."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_text import save_chat_model
from transformers import BertConfig, T5Config, WhisperConfig

from mmspec import cli
from mmspec.errors import MmspecError
from mmspec.pipelines.transformer import check_family

FAMILIES = {
    "WhisperForConditionalGeneration": (WhisperConfig, "has an encoder and does not chat"),
    "T5ForConditionalGeneration": (T5Config, "is an encoder-decoder model"),
    "BertModel": (BertConfig, "BertModel"),
}


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return json.loads((save_chat_model(tmp_path_factory.mktemp("models") / "llama") / "config.json").read_text())


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"num_attention_heads": 3}, r"config.json does not load \(Class validation error"),
        ({"hidden_size": "wide"}, r"config.json does not load \("),
        ({"auto_map": "x"}, "says auto_map 'x': it must name classes"),
        ({"auto_map": {"AutoModelForCausalLM": 3}}, "says auto_map {'AutoModelForCausalLM': 3}: it must name classes"),
        ({"architectures": None}, 'must name the model\'s class in a list, "architectures", and says None'),
        ({"architectures": []}, r'in a list, "architectures", and says \[\]'),
        ({"architectures": "LlamaForCausalLM"}, "in a list, \"architectures\", and says 'LlamaForCausalLM'"),
    ],
)
def test_damaged(entries: dict, changes: dict, wrong: str, tmp_path: Path) -> None:
    """The entry is named."""
    (tmp_path / "config.json").write_text(json.dumps(entries | changes))
    with pytest.raises(MmspecError, match=wrong):
        check_family(tmp_path)


def test_without_architectures(entries: dict, tmp_path: Path) -> None:
    del (found := dict(entries))["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(found))
    with pytest.raises(MmspecError, match='"architectures", and has no entry of that name'):
        check_family(tmp_path)


def test_code_that_is_missing(entries: dict, tmp_path: Path) -> None:
    """Code that may run, and is not there."""
    changes = {"architectures": ["OwnForCausalLM"], "auto_map": {"AutoModelForCausalLM": "own.OwnForCausalLM"}}
    (tmp_path / "config.json").write_text(json.dumps(entries | changes))
    with pytest.raises(MmspecError, match="config.json does not load"):
        check_family(tmp_path, trust_remote_code=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_that_do_not_chat(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """`verify` refuses the family, and not a processor that is missing; `info` says why, and no task."""
    config, wrong = FAMILIES[name]
    config(architectures=[name]).save_pretrained(tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(SystemExit) as end:
        cli.main(["verify", str(tmp_path), "--device", "cpu"])
    assert end.value.code == 2 and wrong in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        cli.main(["info", str(tmp_path), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert not end.value.code and facts["task"] == "none" and wrong in facts["refused"]
