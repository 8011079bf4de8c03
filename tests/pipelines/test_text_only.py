"""Language models without pictures: they chat, are verified, and those without a chat template are sent elsewhere."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import llama
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import mmspec
from mmspec import cli
from mmspec.errors import MmspecError
from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers: a random Llama and a tokenizer of letters with a chat template."""
    letters = ["<pad>", "<end>", "<user>", "<assistant>", *"abcdefghijklmnopqrstuvwxyzHW .,!?'", "<unk>"]
    words = Tokenizer(models.WordLevel({token: i for i, token in enumerate(letters)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("<[a-z]+>|."), "isolated")
    words.decoder = decoders.Fuse()
    text = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", chat_template=TEMPLATE
    )
    path = tmp_path_factory.mktemp("text") / "llama"
    llama(len(text), torch.float32).save_pretrained(path)
    text.save_pretrained(path)
    return path


def test_chat(folder: Path, tmp_path: Path) -> None:
    """Equal answers with every drafter, lookup by default; what is saved loads again."""
    pipe = mmspec.pipeline("image-text-to-text", folder, device="cpu", dtype="fp64")
    assert pipe.drafter == "lookup"
    plain = pipe(None, "Hello?", max_new_tokens=20, temperature=1.0, seed=3, drafter="none")
    for drafter in (None, "jacobi"):
        assert pipe(None, "Hello?", max_new_tokens=20, temperature=1.0, seed=3, drafter=drafter).tokens == plain.tokens
    ids = pipe.processor.tokenizer("<user>Hello?<assistant>").input_ids
    assert pipe.encode([[{"role": "user", "content": [{"type": "text", "text": "Hello?"}]}]]).conditional == [ids]
    pipe.save_pretrained(tmp_path / "saved")
    again = ImageTextToTextPipeline.from_pretrained(tmp_path / "saved", torch_dtype="fp64")
    assert again(None, "Hello?", max_new_tokens=20, temperature=1.0, seed=3).tokens == plain.tokens
    with pytest.raises(MmspecError, match="this language model reads no pictures"):
        pipe(Image.new("RGB", (8, 8)), "What?")


def test_commands(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    """`chat` talks with it, and `verify` compares it."""
    import io

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello?\n")))
    place = ["--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        cli.main(["chat", "--model", str(folder), "--quiet", "--max-new-tokens", "8", "--dtype", "fp64", *place])
    assert not end.value.code and capfd.readouterr().out.endswith("\n")
    settings = "--prompts 2 --dtype fp64 --temperature 0 1 --batch 1 --tokens 8 --drafters lookup --json found.json"
    with pytest.raises(SystemExit) as end:
        cli.main(["verify", str(folder), *settings.split(), *place])
    assert not end.value.code
    assert all(row["equal"] == row["rows"] == 2 for row in json.loads(Path("found.json").read_text()))


def test_recurrent_layers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """`chat` talks with a model with convolutions, and says that drafts are chains; one that forgets its states is
    refused before its weights are looked for.
    """
    import io
    import shutil

    from text_families import build

    copy = Path(shutil.copytree(folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")))
    convolution = dict(layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)

    def chat(*options: object) -> tuple[object, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello?\n")))
        with pytest.raises(SystemExit) as end:
            cli.main(["chat", "--model", str(copy), "--max-new-tokens", "12", "--device", "cpu", *map(str, options)])
        return end.value.code, *capfd.readouterr()

    build("Lfm2", convolution | {"vocab_size": 39}).float().save_pretrained(copy)
    options = ("--dtype", "fp64", "--temperature", 1, "--seed", 3, "--drafter")
    plain, drafted = (chat(*options, name) for name in ("none", "jacobi"))
    assert not plain[0] and len(plain[1]) > 3 and drafted[1] == plain[1] and "by jacobi (chains only)" in drafted[2]
    code, _, err = chat("--dtype", "bf16", "--deterministic")
    assert code == 2 and "Lfm2ForCausalLM has recurrent layers" in err
    (copy / "model.safetensors").unlink()
    build("Jamba", {"vocab_size": 39, "num_experts": 2}).config.save_pretrained(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"architectures": ["JambaForCausalLM"]}))
    code, _, err = chat()
    assert code == 2 and "JambaForCausalLM forgets the states of its Mamba layers" in err and err.count("\n") == 1


def test_without_a_template(folder: Path, tmp_path: Path) -> None:
    """A model that does not chat is sent to `mmspec.generate`, and so is the task of transformers."""
    import shutil

    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    for path in copy.glob("chat_template*"):
        path.unlink()
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(MmspecError, match=r"has no chat template, so it does not chat: mmspec.generate continues"):
        ImageTextToTextPipeline.from_pretrained(copy)
    with pytest.raises(MmspecError, match=r"there is no task 'text-generation': chat .* by mmspec.generate"):
        mmspec.pipeline("text-generation")
