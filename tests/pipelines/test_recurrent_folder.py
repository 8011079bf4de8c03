"""A folder of LLaVA on LFM2, as `save_pretrained` leaves it, answers questions about pictures by chains."""

import json
from pathlib import Path

import pytest
import torch
import transformers as hub
from PIL import Image
from tiny_vlm import EYE, TEXT
from vlm_table_recurrent import CONV

import mmspec
from mmspec import cli

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(vision_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with convolutions, and the processor of another LLaVA."""
    processor = hub.LlavaProcessor.from_pretrained(vision_folder / "processor")
    text = hub.Lfm2Config(**TEXT | CONV | {"vocab_size": len(processor.tokenizer), "tie_word_embeddings": False})
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    config = hub.LlavaConfig(
        vision_config=hub.CLIPVisionConfig(**EYE), text_config=text, image_token_index=image, vision_feature_layer=-1
    )
    path = tmp_path_factory.mktemp("llava")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hub.LlavaForConditionalGeneration(config).save_pretrained(path)
    processor.save_pretrained(path)
    return path


def test_answers(folder: Path) -> None:
    """Chats with one picture, two and none, together: every drafter says what plain decoding says of each alone."""
    pipe = mmspec.pipeline("image-text-to-text", folder, device="cpu", dtype="fp64")
    red, blue = Image.new("RGB", (24, 16), "red"), Image.new("RGB", (16, 32), "blue")
    question = {"type": "text", "text": "what is this?"}
    chats = [
        [{"role": "user", "content": [*({"type": "image", "image": picture} for picture in pictures), question]}]
        for pictures in ([red], [blue, red], [])
    ]
    for temperature in (0.0, 1.0):
        options = dict(max_new_tokens=20, temperature=temperature)
        plain = [pipe(chat, seed=3 + i, drafter="none", **options).tokens[0] for i, chat in enumerate(chats)]
        for drafter in ("jacobi", "lookup"):
            found = pipe(chats, seed=3, drafter=drafter, **options)
            assert found.tokens == plain and found.stats.chains_only


def test_commands(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    """`ask` says that drafts are chains; `verify` finds drafters and `generate` equal to plain decoding."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (24, 16), "red").save("red.png")
    ask = ["ask", "red.png", "what is this?", "--model", str(folder), "--max-new-tokens", "12", "--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        cli.main(ask)
    assert not end.value.code and "lookup (chains only)" in capfd.readouterr().err
    settings = "--prompts 2 --dtype fp64 --temperature 0 1 --batch 1 2 --tokens 12 --drafters lookup jacobi"
    with pytest.raises(SystemExit) as end:
        cli.main(["verify", str(folder), *settings.split(), "--json", "found.json", "--device", "cpu"])
    assert not end.value.code
    rows = json.loads(Path("found.json").read_text())
    assert all(row["equal"] == row["rows"] for row in rows) and any(row["generate_rows"] for row in rows)
    assert all(row["generate_equal"] == row["generate_rows"] for row in rows)
