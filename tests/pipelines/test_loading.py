"""Folders of transformers as people have them: pickled or sharded weights, leftovers, foreign code, placement."""

import fnmatch
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_text import save_chat_model
from transformers import BloomConfig, BloomForCausalLM, LlamaForCausalLM

import mmspec
from mmspec import cli, zoo
from mmspec.errors import MmspecError
from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_chat_model(tmp_path / "llama")


def load(folder: Path | str, **options) -> ImageTextToTextPipeline:
    return mmspec.pipeline("image-text-to-text", folder, device="cpu", dtype="fp64", **options)


def answer(pipe: ImageTextToTextPipeline, **options) -> list[int]:
    return pipe(None, "Hello?", max_new_tokens=12, temperature=1.0, seed=3, **options).tokens[0]


def pickled(folder: Path, content: object | None = None) -> Path:
    """The folder's weights as `pytorch_model.bin`, or something else in its place."""
    weights = folder / "model.safetensors"
    torch.save(load_file(weights) if content is None else content, folder / "pytorch_model.bin")
    weights.unlink()
    return folder


class Thief:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple:
        return (print, ("stolen",))


def test_pickles(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """Weights in a `.bin` file load; code in one does not run."""
    expected = answer(load(folder))
    pipe = load(pickled(folder))
    assert answer(pipe) == expected and pipe.target.weights_hash
    torch.save({"model": Thief()}, folder / "pytorch_model.bin")
    with pytest.raises(MmspecError, match="does not load as LlamaForCausalLM"):
        load(folder)
    assert "stolen" not in capsys.readouterr().out


def test_shards(folder: Path) -> None:
    """Sharded weights load; a shard that is missing is an error."""
    expected = answer(load(folder))
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1 and answer(load(folder)) == expected
    shards[0].unlink()
    with pytest.raises(MmspecError, match="does not load as LlamaForCausalLM"):
        load(folder)


def test_leftovers(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Old buffers are nothing, other tensors are named in a warning, and a missing one is refused."""
    expected, file = answer(load(folder)), folder / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, file, {"format": "pt"})
    assert answer(load(folder)) == expected
    assert not [warning for warning in recwarn if "used without" in str(warning.message)]
    save_file(weights | {"head.extra": torch.ones(4)}, file, {"format": "pt"})
    with pytest.warns(UserWarning, match="a LlamaForCausalLM has no head.extra; the model is used without"):
        assert answer(load(folder)) == expected
    weights.pop("model.norm.weight")
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(MmspecError, match=r"weights of another model \(missing: model.norm.weight\)"):
        load(folder)


def test_foreign_code(folder: Path) -> None:
    """Code that comes with a model runs when it is asked for, and not before."""
    expected, config = answer(load(folder)), folder / "config.json"
    (folder / "own.py").write_text(CODE)
    entries = json.loads(config.read_text()) | {"model_type": "own", "architectures": ["OwnForCausalLM"]}
    entries["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    config.write_text(json.dumps(entries))
    with pytest.raises(MmspecError, match="names OwnForCausalLM, whose code comes with the model"):
        load(folder)
    assert answer(load(folder, trust_remote_code=True)) == expected


def test_device_map(folder: Path, tmp_path: Path) -> None:
    """A model that transformers has placed, a layer of it on the disk, stays there and answers the same."""
    expected = answer(load(folder))
    assert answer(load(folder, device_map="auto")) == expected
    parts = ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")
    devices = dict.fromkeys(parts, "cpu") | {"model.layers.1": "disk"}
    pipe = load(folder, device_map=devices, offload_folder=str(tmp_path / "offload"))
    assert pipe.placed and answer(pipe) == expected == answer(pipe, drafter="jacobi")
    with pytest.raises(MmspecError, match="placed by device_map: it stays as transformers loaded it"):
        pipe.to(torch.float32)


def test_refused_by_its_configuration(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """A family that is not read is refused although there are no weights at all."""
    config = BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2, architectures=[BloomForCausalLM.__name__])
    config.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(MmspecError, match="BloomForCausalLM has positions that depend on the whole sequence"):
        load(folder)
    with pytest.raises(SystemExit) as end:
        cli.main(["ask", "Hello?", "--model", str(folder), "--device", "cpu"])
    assert end.value.code == 2 and "BloomForCausalLM has positions" in capsys.readouterr().err


def test_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a hub come configurations, then weights: pickled ones where there are no others, none for a refused
    family.
    """
    fetched: list[str] = []

    def snapshot(name: str, allow_patterns: list[str], **options: object) -> str:
        source, copy = tmp_path / name.partition("/")[2], tmp_path / "cache" / name
        copy.mkdir(parents=True, exist_ok=True)
        for path in source.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, copy)
                fetched.append(path.name)
        return str(copy)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    expected = answer(load(folder))
    assert answer(load("owner/llama")) == expected
    assert fetched[-1] == "model.safetensors" and "config.json" in fetched[:-1]
    pickled(Path(shutil.copytree(folder, tmp_path / "old")))
    assert answer(load("owner/old")) == expected and fetched[-1] == "pytorch_model.bin"
    refused = Path(shutil.copytree(folder, tmp_path / "bloom"))
    BloomConfig(architectures=["BloomForCausalLM"]).save_pretrained(refused)
    fetched.clear()
    with pytest.raises(MmspecError, match="BloomForCausalLM"):
        load("owner/bloom")
    assert "config.json" in fetched and "model.safetensors" not in fetched


def test_drafters_elsewhere(speech_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drafter's folder is as good as its name, wherever it lies; and so is a hub id."""
    from mmspec.drafters import by_name

    target = mmspec.pipeline("text-to-speech", speech_folder, device="cpu", dtype="fp32").target
    own = by_name("vadusa", speech_folder, target)
    moved = Path(shutil.copytree(speech_folder / "drafters" / "vadusa", tmp_path / "mine" / "vadusa"))
    monkeypatch.setattr(zoo, "download", lambda name: moved)
    for name in (str(moved), "owner/vadusa"):
        loaded = by_name(name, None, target)
        assert loaded.name == own.name
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(loaded.parameters(), own.parameters()))
    (moved / "config.json").unlink()
    with pytest.raises(MmspecError, match="vadusa holds no drafter"):
        by_name(str(moved), None, target)
    with pytest.raises(MmspecError, match="no folder none/at/all"):
        by_name("./none/at/all", None, target)


def test_ask(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A language model is asked without a picture, in quotes or not, and says what it cannot read."""
    place = ["--model", str(folder), "--dtype", "fp64", "--device", "cpu", "--seed", "3", "--max-new-tokens", "12"]
    texts = []
    for words in (["Hello you?"], ["Hello", "you?"]):
        with pytest.raises(SystemExit) as end:
            cli.main(["ask", *words, *place, "--quiet"])
        assert not end.value.code
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    with pytest.raises(SystemExit) as end:
        cli.main(["ask", "-", "What?", *place])
    assert end.value.code == 2


def test_quantised(folder: Path) -> None:
    """Weights that torchao quantises: every drafter answers as plain decoding, and as `generate` where greedy."""
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    pipe = mmspec.pipeline("image-text-to-text", folder, device="cpu", dtype="fp32", quantization_config=config)
    assert pipe.placed
    assert answer(pipe, drafter="jacobi") == answer(pipe, drafter="none")
    ids = pipe.processor.tokenizer("<user>Hello?<assistant>", return_tensors="pt")
    own = pipe.transformer.generate(**ids, max_new_tokens=12, do_sample=False, eos_token_id=sorted(pipe.ends))
    mine = pipe(None, "Hello?", max_new_tokens=12, temperature=0).tokens[0]
    assert mine == [token for token in own[0, ids.input_ids.shape[1] :].tolist() if token not in pipe.ends]
