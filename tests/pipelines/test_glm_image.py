"""GLM-Image: codes by the loop, pictures by the second stage of diffusers' own pipeline."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import GlmImagePipeline as DiffusersPipeline
from PIL import Image
from tiny_glm_image import glm_image, save_glm_image, save_glm_pipeline

import mmspec
from mmspec import cli
from mmspec.errors import MmspecError
from mmspec.pipelines import task_of
from mmspec.pipelines.generation_config import NEUTRAL
from mmspec.pipelines.glm_image import GlmImagePipeline

PROMPT, STEPS = 'a red cat that says "7"', 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_glm_pipeline(tmp_path_factory.mktemp("models") / "glm")


def load(folder: Path, **options: object) -> GlmImagePipeline:
    """A pipeline by the public way, in float64."""
    options = {"height": 64, "width": 96, "num_inference_steps": STEPS} | options
    pipe = mmspec.pipeline("text-to-image", folder, device="cpu", dtype="fp64", **options)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe, GlmImagePipeline)
    return pipe


@pytest.fixture(scope="module")
def pipe(folder: Path) -> GlmImagePipeline:
    return load(folder)


def diffusers_picture(folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> Image.Image:
    """The picture by diffusers alone, whose first stage is greedy and kept to codes."""
    pipe = DiffusersPipeline.from_pretrained(folder)
    pipe.register_modules(vision_language_encoder=glm_image())
    pipe.set_progress_bar_config(disable=True)
    generate = glm_image().generate
    options = dict(suppress_tokens=[60, 61, 62, 63], do_sample=False)
    monkeypatch.setattr(glm_image(), "generate", lambda **kwargs: generate(**kwargs | options))
    generator = torch.Generator().manual_seed(seed)
    return pipe(PROMPT, height=64, width=96, num_inference_steps=STEPS, generator=generator).images[0]


def test_picture_equals_diffusers(pipe, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """equality: pixel by pixel that of diffusers' pipeline, whose first stage is `generate` of transformers."""
    expected = diffusers_picture(folder, 3, monkeypatch)
    assert np.asarray(expected).std() > 1
    out = pipe(PROMPT, seed=3, temperature=0)
    assert out.images[0].size == (96, 64) and out.images[0].tobytes() == expected.tobytes()


@pytest.mark.slow
def test_second_stage_follows_seed_and_guidance(pipe: GlmImagePipeline) -> None:
    """negative control: the same codes, and another picture."""
    plain = pipe(PROMPT, seed=3, temperature=0)
    for options in (dict(seed=4), dict(seed=3, guidance_scale=3)):
        other = pipe(PROMPT, temperature=0, **options)
        assert other.tokens == plain.tokens and other.images[0].tobytes() != plain.images[0].tobytes()


@pytest.mark.slow
def test_seeds_and_batches(pipe: GlmImagePipeline) -> None:
    """equality: a seed's picture is the same alone and in a batch, with any drafter."""
    assert pipe.sampling_defaults == NEUTRAL | {"temperature": 0.9, "top_k": 50, "top_p": 0.75}
    plain = [pipe(PROMPT, seed=seed, drafter="none") for seed in (3, 4)]
    assert plain[0].tokens != plain[1].tokens and len(plain[0].tokens[0]) == pipe.grid.tokens
    for drafter in ("jacobi", "lookup"):
        out = pipe(PROMPT, seed=3, num_images_per_prompt=2, drafter=drafter)
        assert out.tokens == [one.tokens[0] for one in plain]
        assert [image.tobytes() for image in out.images] == [one.images[0].tobytes() for one in plain]


def test_codes_and_pieces(pipe: GlmImagePipeline) -> None:
    """Codes of the picture without its preview; what is not drawn to its end is grey."""
    out = pipe(PROMPT, seed=3, output_type="latent")
    assert out.images.shape == (1, 2, 3) and out.images.flatten().tolist() == out.tokens[0][-6:]
    first = next(iter(pipe.stream(PROMPT, seed=3))).images()[0]
    assert first.size == (96, 64) and (np.asarray(first) == 191).all()


@pytest.mark.slow
def test_saved_again(pipe: GlmImagePipeline, tmp_path: Path) -> None:
    """round trip: diffusers' own folder, which gives the same picture."""
    pipe.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "model_index.json").read_text())["_class_name"] == "GlmImagePipeline"
    assert again.target.weights_hash == pipe.target.weights_hash
    assert again(PROMPT, seed=3).images[0].tobytes() == pipe(PROMPT, seed=3).images[0].tobytes()


def run(*arguments: object) -> int:
    try:
        return cli.main([str(argument) for argument in (*arguments, "--device", "cpu")])
    except SystemExit as exit_:
        return exit_.code


@pytest.mark.slow
def test_commands(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """image and verify of the whole folder, told by its index; the picture carries its settings."""
    assert task_of(folder) == "text-to-image"
    path, frames, found = tmp_path / "cat.png", tmp_path / "cat.gif", tmp_path / "found.json"
    draw = ("image", "a cat", "--model", folder, "--dtype", "fp64", "--pixels", "96x64", "-o", path)
    assert run(*draw, "--seed", 3, "--progressive", frames) == 0 and frames.is_file()
    with Image.open(path) as picture:
        assert picture.size == (96, 64) and picture.text["guidance"] == "1.5" and picture.text["temperature"] == "0.9"
    options = ("--prompts", 1, "--dtype", "fp64", "--temperature", 0, 1, "--tokens", 20, "--json", found)
    assert run("verify", folder, *options) == 0
    rows = json.loads(found.read_text())
    assert rows and all(row["equal"] == row["rows"] for row in rows)
    assert {(row["temperature"], row["generate_equal"]) for row in rows} == {(0.0, 1), (1.0, 0)}


def test_first_stage_alone(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """A folder of transformers gives codes; a picture is refused in one line, before weights are read."""
    folder = save_glm_image(tmp_path / "model")
    pipe = mmspec.pipeline("text-to-image", folder, device="cpu", dtype="fp64", height=32, width=64)
    pipe.set_progress_bar_config(disable=True)
    out = pipe("a cat", seed=3, output_type="latent")
    assert out.images.shape == (1, 1, 2)
    text = "the second stage of its diffusers pipeline paints them: give the whole folder"
    with pytest.raises(MmspecError, match=text):
        pipe("a cat")
    with pytest.raises(MmspecError, match="draws its codes without guidance"):
        pipe("a cat", guidance_scale=3, output_type="latent")
    (folder / "model.safetensors").unlink()
    assert run("image", "a cat", "--model", folder, "-o", tmp_path / "cat.png") == 2
    assert text in capfd.readouterr().err


def test_what_is_refused(folder: Path, pipe: GlmImagePipeline, tmp_path: Path, capfd) -> None:
    """Sizes, control tokens, counts of steps, and folders that are not whole."""
    for size, text in ((dict(height=40, width=64), "a size of 64x40"), (dict(height=32, width=16384), "its preview")):
        with pytest.raises(MmspecError, match=text):
            load(folder, **size)
    with pytest.raises(MmspecError, match="the prompt holds <sop>, a control token"):
        pipe("a cat <sop>2 3")
    with pytest.raises(MmspecError, match="num_inference_steps=0: give a whole number from 1 up"):
        load(folder, num_inference_steps=0)
    broken = save_glm_pipeline(tmp_path / "broken")
    (broken / "vae" / "config.json").unlink()
    with pytest.raises(MmspecError, match="does not load as a GlmImagePipeline"):
        load(broken)
    for path in (broken / "vision_language_encoder").glob("*.safetensors"):
        path.write_bytes(b"version https://git-lfs")
    assert run("image", "cat", "--model", broken, "-o", tmp_path / "cat.png") == 2
    assert "safetensors is truncated" in capfd.readouterr().err
