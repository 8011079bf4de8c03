"""Drawing with models of transformers: folders as `save_pretrained` makes them, loaded by the public way."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_emu3 import HEIGHT, WIDTH, emu3_processor, save_emu3
from tiny_janus import janus_processor, save_janus

import mmspec
from mmspec import cli
from mmspec.errors import MmspecError
from mmspec.pipelines import task_of
from mmspec.pipelines.family_image import FamilyImagePipeline

PROMPT = "a red cat, 3d"


@pytest.fixture(scope="module")
def janus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_janus(tmp_path_factory.mktemp("models") / "janus")


@pytest.fixture(scope="module")
def emu3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_emu3(tmp_path_factory.mktemp("models") / "emu3")


def load(folder: Path, **options: object) -> FamilyImagePipeline:
    """A pipeline by the public way, in float64."""
    found = mmspec.pipeline("text-to-image", folder, device="cpu", dtype="fp64", **options)
    found.set_progress_bar_config(disable=True)
    assert isinstance(found, FamilyImagePipeline)
    return found


@pytest.fixture(scope="module")
def janus_pipe(janus_folder: Path) -> FamilyImagePipeline:
    return load(janus_folder)


@pytest.fixture(scope="module")
def emu3_pipe(emu3_folder: Path) -> FamilyImagePipeline:
    return load(emu3_folder, height=2 * HEIGHT, width=2 * WIDTH)


@pytest.fixture(params=["janus", "emu3"])
def pipe(request: pytest.FixtureRequest) -> FamilyImagePipeline:
    return request.getfixturevalue(f"{request.param}_pipe")


def emu3_as_documented(pipe: FamilyImagePipeline, prompt: str) -> Image.Image:
    """The greedy picture by transformers alone, as its documentation of Emu3 says, guided away from no prompt."""
    processor, model, tokenizer = emu3_processor(), pipe.transformer, pipe.processor.tokenizer
    options = dict(return_for_image_generation=True, return_tensors="pt")
    inputs, negative = processor(text=[prompt], **options), processor(text=[""], **options)
    ((height, width),) = inputs.pop("image_sizes")
    wrapper, *ends = tokenizer.convert_tokens_to_ids(["<wrapper>", "<eof>", "<eoi>", "</s>"])
    names = model.vocabulary_mapping

    def allowed(batch: int, ids: torch.Tensor) -> list[int]:
        offset = len(ids) - int(torch.nonzero(ids == wrapper)[0, 0])
        after = offset - (width + 1) * height
        return ends[after - 1 : after] if after > 0 else names.image_tokens if offset % (width + 1) else [99]

    ids = model.generate(
        **inputs,
        max_new_tokens=(width + 1) * height + 3,
        prefix_allowed_tokens_fn=allowed,
        guidance_scale=3.0,
        do_sample=False,
        negative_prompt_ids=negative["input_ids"],
        negative_prompt_attention_mask=negative["attention_mask"],
    )[:, inputs["input_ids"].shape[1] :]
    pixels = model.decode_image_tokens(image_tokens=ids, height=height, width=width)
    return processor.postprocess(list(pixels.float()), return_tensors="PIL.Image.Image")["pixel_values"][0]


@torch.inference_mode()
def as_documented(pipe: FamilyImagePipeline, prompt: str) -> Image.Image:
    """The greedy picture by transformers alone, as its documentation says."""
    if pipe.transformer.config.model_type == "emu3":
        return emu3_as_documented(pipe, prompt)
    processor, model = pipe.processor, pipe.transformer
    chat = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(text=text, generation_mode="image", return_tensors="pt", add_special_tokens=False)
    codes = model.generate(**inputs, generation_mode="image", do_sample=False, guidance_scale=5, max_length=99)
    pixels = model.decode_image_tokens(codes).float().movedim(3, 1)
    array = processor.postprocess(list(pixels), return_tensors="pt")["pixel_values"][0]
    return Image.fromarray(array.movedim(0, 2).numpy())


@pytest.mark.parametrize("drafter", ["none", "jacobi", "lookup"])
def test_picture_equals_transformers(pipe: FamilyImagePipeline, drafter: str) -> None:
    """equality: the greedy picture, pixel by pixel, is that of the model's own `generate`, decoder and processor."""
    for prompt in (PROMPT, "7 dogs"):
        (found,) = pipe(prompt, temperature=0, drafter=drafter).images
        assert found.size == (pipe.config.width, pipe.config.height)
        assert found.tobytes() == as_documented(pipe, prompt).tobytes()


@pytest.mark.parametrize("guidance", [None, 1.0])
def test_seeds_and_batches(pipe: FamilyImagePipeline, guidance: float | None) -> None:
    """equality: a seed's picture is the same alone and in a batch, with any drafter."""
    options = {"guidance_scale": guidance}
    plain = [pipe(PROMPT, seed=seed, drafter="none", **options).tokens[0] for seed in (3, 4)]
    assert plain[0] != plain[1] and len(plain[0]) == pipe.grid.tokens
    for drafter in ("jacobi", "lookup"):
        assert pipe(PROMPT, seed=3, num_images_per_prompt=2, drafter=drafter, **options).tokens == plain


def test_pieces_and_types(pipe: FamilyImagePipeline) -> None:
    """A picture that is not drawn to its end has grey places; arrays and tensors hold the same picture."""
    half = pipe.paint([[1] * (pipe.grid.tokens // 2)])[0]
    assert (np.asarray(half)[4:] == 191).all() and not (np.asarray(half)[:4] == 191).all()
    array = pipe(PROMPT, seed=1, output_type="np").images[0]
    assert np.array_equal((array * 255).round().astype(np.uint8), np.asarray(pipe(PROMPT, seed=1).images[0]))


def test_saved_again(pipe: FamilyImagePipeline, tmp_path: Path) -> None:
    """Saved, it is a folder of transformers again, which draws the same."""
    pipe.save_pretrained(tmp_path / "copy")
    again = load(tmp_path / "copy", height=pipe.config.height, width=pipe.config.width)
    assert again(PROMPT, seed=2).tokens == pipe(PROMPT, seed=2).tokens


def test_defaults(janus_folder: Path, tmp_path: Path) -> None:
    """Guidance and temperature come from generation_config.json, unless given."""
    folder = save_janus(tmp_path / "janus")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"guidance_scale": 3.0, "temperature": 0.5, "do_sample": True}))
    pipe = FamilyImagePipeline.from_pretrained(folder)
    assert (pipe.config.guidance_scale, pipe.temperature) == (3.0, 0.5)
    assert len(pipe.encode([PROMPT], 3.0).branches) == 2  # ids that are missing come from the tokenizer
    pipe = FamilyImagePipeline.from_pretrained(janus_folder, guidance_scale=2.0)
    assert (pipe.config.guidance_scale, pipe.temperature) == (2.0, 1.0)


def run(*arguments: object) -> int:
    """A command's exit code."""
    with pytest.raises(SystemExit) as caught:
        cli.main([*map(str, arguments), "--device", "cpu"])
    return int(caught.value.code or 0)


def test_commands(janus_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """`mmspec image` writes a PNG that says how it was drawn, and `mmspec verify` compares with `generate`."""
    path = tmp_path / "cat.png"
    assert task_of(janus_folder) == "text-to-image"
    assert run("image", "a", "cat", "--model", janus_folder, "-o", path, "--seed", 3, "--dtype", "fp64") == 0
    with Image.open(path) as picture:
        assert picture.size == (8, 8) and picture.text["guidance"] == "5.0" and picture.text["prompt"] == "a cat"
    found = tmp_path / "found.json"
    options = ("--prompts", 2, "--dtype", "fp64", "--temperature", 0, 1, "--guidance", 1, 5, "--json", found)
    assert run("verify", janus_folder, *options) == 0
    rows = json.loads(found.read_text())
    assert rows and all(row["equal"] == row["rows"] for row in rows)
    compared = {(row["temperature"], row["guidance"]): row["generate_equal"] for row in rows}
    assert compared == {(0.0, 1.0): 0, (0.0, 5.0): 2, (1.0, 1.0): 0, (1.0, 5.0): 0}
    assert "Janus without guidance" in capfd.readouterr().err


def test_emu3_commands(emu3_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """A size in pixels, and the model's own without it; wrong sizes, and those of models that have one."""
    path, size = tmp_path / "cat.png", f"{2 * WIDTH}x{2 * HEIGHT}"
    draw = ("image", "a", "cat", "-o", path, "--seed", 3, "--dtype", "fp64")
    assert FamilyImagePipeline.from_pretrained(emu3_folder).grid.tokens == 90 * 91
    assert run(*draw, "--model", emu3_folder, "--pixels", size) == 0
    with Image.open(path) as picture:
        assert picture.size == (2 * WIDTH, 2 * HEIGHT) and picture.text["guidance"] == "3.0"
    found = tmp_path / "found.json"
    options = ("--prompts", 1, "--dtype", "fp64", "--temperature", 0, "--tokens", 93, "--json", found)
    assert run("verify", emu3_folder, *options) == 0
    assert all(row["equal"] == row["generate_equal"] == 1 for row in json.loads(found.read_text()))
    capfd.readouterr()
    for model, text, wrong in (
        (emu3_folder, "7x8", "a size of 7x8 is not possible: give multiples of 2 pixels"),
        (emu3_folder, "large", "--pixels large: give width and height in pixels, as in 720x720"),
        ("emoji-64", "64x64", "emoji-64 draws pictures of one size with parts of its own: leave --pixels out"),
    ):
        assert run(*draw, "--model", model, "--pixels", text) == 2 and wrong in capfd.readouterr().err
    with pytest.raises(MmspecError, match="height and width come together"):
        load(emu3_folder, height=8)


def test_what_is_refused(janus_pipe: FamilyImagePipeline, janus_folder: Path, tmp_path: Path, capfd) -> None:
    """Families that do not draw, before weights are read; control tokens in prompts; parts of other models."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "llava"}))
    text = "with which mmspec cannot draw: use one of chameleon, emu3, glm_image, janus, llamagen, lumina"
    with pytest.raises(MmspecError, match=text):
        mmspec.pipeline("text-to-image", other)
    assert run("image", "cat", "--model", other) == 2 and text in capfd.readouterr().err
    with pytest.raises(MmspecError, match="the prompt holds <boi>, a control token of the model: leave it out"):
        janus_pipe("a <boi> cat")
    with pytest.raises(MmspecError, match="unknown option of from_pretrained 'variant'"):
        mmspec.pipeline("text-to-image", janus_folder, variant="fp16")
    with pytest.raises(MmspecError, match="this Janus draws pictures of 8x8 pixels alone: leave the size out"):
        load(janus_folder, height=16, width=16)
    from tiny import llama

    with pytest.raises(MmspecError, match="LlamaForCausalLM, which does not draw"):
        FamilyImagePipeline(janus_processor(), llama())
    broken = save_janus(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(MmspecError, match="model.safetensors is truncated"):
        mmspec.pipeline("text-to-image", broken)


def test_half_precision(janus_folder: Path) -> None:
    """bf16, the default: drafted and plain agree where it is deterministic."""
    pipe = mmspec.pipeline("text-to-image", janus_folder, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    pipe.deterministic = True
    assert pipe.dtype == torch.bfloat16
    assert pipe(PROMPT, seed=3).tokens == pipe(PROMPT, seed=3, drafter="none").tokens
