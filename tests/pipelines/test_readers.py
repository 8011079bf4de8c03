"""Vision-language models from folders, with their own processors: equal to transformers, and by all commands."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_readers import NAMES, save_reader

import mmspec
from mmspec import cli
from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline

LENGTH = 12


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reader(request.param, tmp_path_factory.mktemp("reader") / request.param)


@pytest.fixture(scope="module")
def pipe(folder: Path) -> ImageTextToTextPipeline:
    return mmspec.pipeline("image-text-to-text", folder, device="cpu", dtype="fp64")


def pictures(count: int) -> list[Image.Image]:
    return [Image.effect_noise((16 + 8 * i, 24), 90).convert("RGB") for i in range(count)]


def chat(images: list[Image.Image]) -> list[dict]:
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "what is this?"}]}]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_answers_are_those_of_generate(pipe: ImageTextToTextPipeline, count: int) -> None:
    """Greedy, about no picture, one and two: by the model's own processor and `generate`."""
    asked = chat(pictures(count))
    inputs = pipe.processor.apply_chat_template(
        asked, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    with torch.inference_mode():
        own = pipe.transformer.generate(**inputs, do_sample=False, max_new_tokens=LENGTH, pad_token_id=0)
    own = own[0, inputs["input_ids"].shape[1] :].tolist()
    for drafter in ("none", "jacobi", "lookup"):
        assert pipe(asked, temperature=0, max_new_tokens=LENGTH, drafter=drafter).tokens == [own]


def test_batches_and_turns(pipe: ImageTextToTextPipeline) -> None:
    """Chats of different pictures and turns in one batch answer as each alone, at T = 1 too."""
    first, second = chat(pictures(1)), chat(pictures(2))
    second += [{"role": "assistant", "content": [{"type": "text", "text": "it is a cat."}]}, *chat([])]
    options = dict(temperature=1.0, max_new_tokens=LENGTH)
    alone = [pipe(asked, seed=3 + i, drafter="none", **options).tokens[0] for i, asked in enumerate([first, second])]
    for drafter in ("none", "jacobi", "lookup"):
        assert pipe([first, second], seed=3, drafter=drafter, **options).tokens == alone


def test_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    """`ask`, `info` and `verify` take the folder."""
    monkeypatch.chdir(tmp_path)
    pictures(1)[0].save("a.png")
    pictures(2)[1].save("b.png")
    place = ["--model", str(folder), "--dtype", "fp64", "--device", "cpu", "--max-new-tokens", "8", "--json"]
    for words in (["what is this?"], ["a.png", "what is this?"], ["a.png", "b.png", "what is this?"]):
        assert run("ask", *words, *place) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["question"] == "what is this?" and facts["tokens"] == 8 and facts["lossless"]
    assert run("info", str(folder), "--json") == 0
    assert json.loads(capsys.readouterr().out)["task"] == "image-text-to-text"
    settings = "--prompts 2 --dtype fp64 --temperature 0 1 --batch 2 --tokens 8 --device cpu --json found.json"
    assert run("verify", str(folder), "--drafters", "lookup", "jacobi", *settings.split()) == 0
    found = json.loads(Path("found.json").read_text())
    assert all(row["equal"] == row["rows"] == 2 for row in found)
    assert [row["generate_equal"] for row in found if row["temperature"] == 0] == [2, 2]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    return int(end.value.code or 0)
