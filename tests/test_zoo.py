"""Models by name, folder and hub id; their lists of prompts, indices, weights, and the text of every error."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from mmspec import zoo
from mmspec.errors import MmspecError


def test_order_of_names(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundled name comes before a folder of that name, and a folder before the hub."""
    monkeypatch.setattr(zoo, "home", lambda: model_folder.parent)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, tmp_path / "tiny")
    shutil.copytree(model_folder, tmp_path / "owner" / "name")
    assert zoo.resolve("tiny") == model_folder
    assert zoo.resolve(Path("tiny")) == Path("tiny")
    assert zoo.resolve("owner/name") == Path("owner/name")
    monkeypatch.setattr(zoo, "download", lambda name, check, **options: Path(f"hub/{name}/{options.get('revision')}"))
    assert zoo.resolve("other/name", revision="v1") == Path("hub/other/name/v1")


def test_folders_of_transformers(tmp_path: Path) -> None:
    """A folder with a config.json alone is a model only where transformers' models are allowed."""
    (tmp_path / "config.json").write_text("{}")
    assert zoo.resolve(tmp_path, allow_transformers=True) == tmp_path
    with pytest.raises(MmspecError, match="is not a model folder: it has no model_index.json"):
        zoo.resolve(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("emoji-46", "unknown model 'emoji-46'"),
        ("nowhere/at/all", "no folder nowhere/at/all: give a model folder, a hub id such as owner/name"),
        ("here/name", "no folder here/name: give a model folder"),
        ("file", "file is a file: give the model's folder"),
        ("~nobody-of-this-name/x", "no folder ~nobody-of-this-name/x"),
    ],
)
def test_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "here").mkdir()
    with pytest.raises(MmspecError, match=text):
        zoo.resolve(name)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*arguments, **options):
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(MmspecError, match=r"could not fetch model 'a/b' from the hub \(no route\): check the name"):
        zoo.resolve("a/b")


def test_bundled(model_folder: Path, speech_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, size and trained drafters of each."""
    monkeypatch.setattr(zoo, "home", lambda: speech_folder.parent)
    entry = zoo.bundled()[speech_folder.name]
    assert entry.drafters == ["vadusa"] == zoo.drafters(speech_folder) and zoo.drafters(model_folder) == []
    assert entry.bytes == sum(path.stat().st_size for path in speech_folder.rglob("*") if path.is_file())


def test_prompts(tmp_path: Path) -> None:
    """All fields of a line are kept; a list that is missing, broken, empty or lacks a field is refused."""
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a", "voice": "v", "more": 1}\n{"prompt": "b", "voice": "w"}\n')
    assert zoo.prompts(tmp_path, "voice") == [
        {"prompt": "a", "voice": "v", "more": 1},
        {"prompt": "b", "voice": "w"},
    ]
    with pytest.raises(MmspecError, match=r'must hold a line {"prompt": ..., "kind": ...} for each prompt'):
        zoo.prompts(tmp_path, "kind")
    for text in ("", "{", '"text"\n'):
        path.write_text(text)
        with pytest.raises(MmspecError, match="prompts.jsonl must hold a line"):
            zoo.prompts(tmp_path)


def test_index(tmp_path: Path) -> None:
    with pytest.raises(MmspecError, match=r"model_index.json cannot be read \("):
        zoo.read_index(tmp_path)
    (tmp_path / zoo.INDEX).write_text("[]")
    with pytest.raises(MmspecError, match="must hold a JSON object, not a list"):
        zoo.read_index(tmp_path)
    (tmp_path / zoo.INDEX).write_text(json.dumps({"a": 1}))
    assert zoo.read_index(tmp_path) == {"a": 1}


def test_weights(tmp_path: Path) -> None:
    """A whole file passes; the hash names the weights and follows every change at either end."""
    path = tmp_path / "model.safetensors"
    with pytest.raises(MmspecError, match="model.safetensors is missing: restore it"):
        zoo.check_weights(path)
    hashes = set()
    for value in (0.0, 1.0):
        save_file({"weight": torch.full((1000,), value)}, path)
        zoo.check_weights(path)
        hashes |= {zoo.weights_hash(tmp_path), zoo.weights_hash(tmp_path, span=64)}
    assert len(hashes) == 4 and all(len(name) == 16 for name in hashes)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(MmspecError, match=r"is truncated or is no safetensors file \(100 bytes"):
        zoo.check_weights(path)


def test_components(model_folder: Path, tmp_path: Path) -> None:
    """A component loads as its class; a missing folder and weights of another model are named."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    assert isinstance(zoo.load_component(folder, "transformer", LlamaForCausalLM), LlamaForCausalLM)
    with pytest.raises(MmspecError, match="codec is missing, and .*model_index.json names it"):
        zoo.load_component(folder, "codec", LlamaForCausalLM)
    save_file({"other": torch.zeros(3)}, folder / "transformer" / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        MmspecError, match=r"holds the weights of another model \(.*\): .* describes a LlamaForCausalLM"
    ):
        zoo.load_component(folder, "transformer", LlamaForCausalLM)
