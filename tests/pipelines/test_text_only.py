"""Language models without pictures: they chat, are verified, and those without a chat template are sent elsewhere."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny_text import save_chat_model

import mmspec
from mmspec import cli
from mmspec.errors import MmspecError
from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("text") / "llama")


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
