"""LlamaGen from released files: classes and captions to pictures, by the public way."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_llamagen import CAPTION, LENGTH, SIDE, caption_prompt, decoded, gpt, logits, save_llamagen, vq

import mmspec
from mmspec import cli
from mmspec.errors import MmspecError
from mmspec.pipelines import task_of
from mmspec.pipelines.generation_config import NEUTRAL
from mmspec.pipelines.llamagen import LlamaGenPipeline

PROMPT = {"c2i": "207", "t2i": "A red cat"}


@pytest.fixture(scope="module", params=["c2i", "t2i"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llamagen(tmp_path_factory.mktemp("models") / request.param, request.param)


def load(folder: Path, **options: object) -> LlamaGenPipeline:
    """A pipeline by the public way, in float64."""
    pipe = mmspec.pipeline("text-to-image", folder, device="cpu", dtype="fp64", **options)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe, LlamaGenPipeline)
    return pipe


@pytest.fixture(scope="module")
def pipe(folder: Path) -> LlamaGenPipeline:
    return load(folder)


@pytest.fixture
def prompt(folder: Path) -> str:
    return PROMPT[folder.name]


def test_pictures(pipe: LlamaGenPipeline, folder: Path, prompt: str) -> None:
    """equality: the greedy picture, within one step of 256, is what the description of the decoder makes of its codes.

    Guidance and top-k are those of the model's own sampler; the whole prompt reaches the picture.
    """
    assert pipe.config.guidance_scale == (4.0 if folder.name == "c2i" else 7.5)
    defaults = {"temperature": 1.0, "top_k": 2000 if folder.name == "c2i" else 1000, "top_p": 1.0}
    assert pipe.sampling_defaults == NEUTRAL | defaults
    out = pipe(prompt, temperature=0)
    assert out.images[0].size == (4 * SIDE, 4 * SIDE)
    expected = decoded(torch.tensor(out.tokens[0]).view(SIDE, SIDE)).permute(1, 2, 0).numpy() * 127.5 + 127.5
    assert expected.std() > 5 and np.abs(np.asarray(out.images[0]) - expected).max() < 1
    assert pipe("208" if folder.name == "c2i" else "a red cut", temperature=0).tokens != out.tokens


def test_seeds_and_batches(pipe: LlamaGenPipeline, prompt: str) -> None:
    """equality: a seed's picture is the same alone and in a batch, with any drafter."""
    plain = [pipe(prompt, seed=seed, drafter="none").tokens[0] for seed in (3, 4)]
    assert plain[0] != plain[1]
    for drafter in ("jacobi", "lookup"):
        assert pipe(prompt, seed=3, num_images_per_prompt=2, drafter=drafter).tokens == plain


def test_saved_again(pipe: LlamaGenPipeline, folder: Path, prompt: str, tmp_path: Path) -> None:
    """round trip: parts as transformers and diffusers save them give the same picture."""
    pipe.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    assert again.config.guidance_scale == pipe.config.guidance_scale
    one, two = (drawing(prompt, seed=3) for drawing in (pipe, again))
    assert one.tokens == two.tokens and one.images[0].tobytes() == two.images[0].tobytes()


def test_captions_as_its_sampler_reads_them(tmp_path: Path) -> None:
    """equality: the first code's logits are those of 120 (here 48) vectors of a T5 that is given padding, turned round
    as the sampler turns them.
    """
    pipe = load(save_llamagen(tmp_path / "t2i", "t2i"))
    tokenizer, encoder = pipe.processor.tokenizer, pipe.processor.encoder
    ids = tokenizer("a red cat")["input_ids"]
    mask = torch.tensor([[1] * len(ids) + [0] * (LENGTH - len(ids))])
    padded = torch.tensor([ids + [0] * (LENGTH - len(ids))])
    caption = encoder(padded, attention_mask=mask).last_hidden_state[0, : len(ids)].detach()
    assert caption.shape == (9, CAPTION)
    prompt, seen = caption_prompt(caption)
    state = pipe.target.prefill(pipe.encode(["A Red cat "], 1.0), 64)
    assert (state.prefill_output.logits[0, 0] - logits("t2i", prompt, [], seen)).abs().max() < 1e-4


def run(*arguments: object) -> int:
    try:
        return cli.main([str(argument) for argument in (*arguments, "--device", "cpu")])
    except SystemExit as exit_:
        return exit_.code


@pytest.mark.slow
def test_commands(folder: Path, prompt: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """image, info and verify; the examples of a model of classes are classes."""
    assert task_of(folder) == "text-to-image"
    path, found = tmp_path / "cat.png", tmp_path / "found.json"
    assert run("image", prompt, "--model", folder, "-o", path, "--seed", 3, "--dtype", "fp64") == 0
    with Image.open(path) as picture:
        assert picture.size == (4 * SIDE, 4 * SIDE) and picture.text["prompt"] == prompt
    options = ("--prompts", 2, "--dtype", "fp64", "--temperature", 0, 1, "--json", found)
    assert run("verify", folder, *options) == 0
    rows = json.loads(found.read_text())
    assert rows and all(row["equal"] == row["rows"] for row in rows)
    assert "LlamaGen, which transformers does not have" in capfd.readouterr().err


def test_files_that_do_not_fit(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Each is refused in one line that names the file."""
    folder = save_llamagen(tmp_path / "c2i", "c2i")
    draw = ("image", "207", "--model", folder, "-o", tmp_path / "out.png")
    file, config, codes = folder / "c2i_B_256.pt", folder / "config.json", folder / "vq_ds4.pt"

    def refused(text: str, *arguments: object) -> None:
        assert run(*(arguments or draw)) == 2
        assert text in capfd.readouterr().err.replace("\n", " ")

    for prompt in ("a cat", "1000", "-1"):
        refused("draws classes by their numbers, 0 to 999", "image", "--model", folder, "--", prompt)
    refused("a size of 6x6 is not possible: give a square, a multiple of 4", *draw, "--pixels", "6x6")
    config.unlink()
    refused("is none of those released: give it a config.json")
    config.write_text(json.dumps({"model_type": "llamagen", "num_attention_heads": 4}))
    torch.save({"model": gpt("c2i"), "args": Namespace(lr=1e-4)}, file)
    assert load(folder, height=16, width=16).grid.height == 4 and load(folder).grid.height == 64
    file.rename(folder / "c2i_B.pt")
    refused("c2i_B.pt does not say how large its pictures are: give the size in pixels")
    (folder / "c2i_B.pt").rename(file)
    codes.rename(tmp_path / "vq_ds4.pt")
    options = dict(height=64, width=64)
    assert load(folder, **options)("207", output_type="latent").images.shape == (1, 4, 4)
    with pytest.raises(MmspecError, match="put LlamaGen's VQ file into the model's folder"):
        load(folder, image_tokenizer="vq.pt", **options)
    with pytest.raises(MmspecError, match="there is no VQ model for the codes of this LlamaGen"):
        load(folder, **options)("207")
    torch.save({"model": {name: tensor for name, tensor in vq().items() if "mid.1" not in name}}, codes)
    refused("vq_ds4.pt does not hold the tensors of LlamaGen's VQ model")
    (tmp_path / "vq_ds4.pt").rename(codes)
    torch.save({"model": {**gpt("c2i"), "layers.0.attention.extra.weight": torch.zeros(1)}}, file)
    refused("does not hold the tensors of a LlamaGen")
    torch.save({"model": gpt("c2i"), "run": run}, file)
    refused("c2i_B_256.pt cannot be read as tensors alone")
    file.write_bytes(b"version https://git-lfs")
    refused("c2i_B_256.pt cannot be read as tensors alone")
    torch.save({"model": gpt("c2i")}, folder / "c2i_L_256.pt")
    refused("holds several models, c2i_B_256.pt, c2i_L_256.pt")
    captions = save_llamagen(tmp_path / "t2i", "t2i")
    with pytest.raises(MmspecError, match="a prompt has 59 tokens and this model reads 48: shorten it"):
        load(captions)("cat " * 15)
    (captions / "flan-t5-xl").rename(tmp_path / "t5")
    refused("has no T5 encoder", "image", "a cat", "--model", captions)
