"""Text to image: shapes, seeds, batches, callbacks, saving, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmspec
from mmspec import zoo
from mmspec.errors import MmspecError
from mmspec.pipelines.text_to_image import TextToImagePipeline

PROMPT = "a red heart, 3d style"


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> TextToImagePipeline:
    found = mmspec.pipeline("text-to-image", str(model_folder), device="cpu", dtype="fp64")
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture
def copy(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def test_output(pipe) -> None:
    """Pictures, codes, seeds and statistics, the pictures of a prompt next to each other."""
    out = pipe([PROMPT, "a cat"], seed=3, num_images_per_prompt=2)
    assert [image.size for image in out.images] == [(16, 16)] * 4
    assert isinstance(out.images[0], Image.Image)
    assert out.seeds == [3, 4, 5, 6]
    assert [len(row) for row in out.tokens] == [64] * 4
    assert out.stats.tokens == 256 and out.stats.lossless and out.stats.drafter == "jacobi"
    images, *_ = pipe(PROMPT, seed=3, return_dict=False)
    assert len(images) == 1


def test_output_types(pipe) -> None:
    """The same picture as PIL, numpy and torch."""
    array = pipe(PROMPT, seed=1, output_type="np").images
    tensor = pipe(PROMPT, seed=1, output_type="pt").images
    image = pipe(PROMPT, seed=1).images[0]
    assert array.shape == (1, 16, 16, 3) and tensor.shape == (1, 3, 16, 16) and tensor.dtype == torch.float32
    assert np.allclose(array[0].transpose(2, 0, 1), tensor[0].numpy())
    assert np.abs(np.asarray(image) / 255 - array[0]).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_equality(pipe, guidance: float, temperature: float) -> None:
    """Same seed, same tokens, with any drafter; a batch equals singles."""
    options = {"guidance_scale": guidance, "temperature": temperature}
    plain = [pipe(text, seed=seed, drafter="none", **options).tokens[0] for seed, text in ((5, PROMPT), (6, "a cat"))]
    for drafter in ("none", "lookup", "jacobi"):
        assert pipe([PROMPT, "a cat"], seed=5, drafter=drafter, **options).tokens == plain
    assert pipe([PROMPT, "a cat"], seed=[5, 6], **options).tokens == plain


def test_seeds(pipe) -> None:
    """Seeds decide; a generator decides seeds; without either torch's own generator does."""
    first = pipe(PROMPT, seed=0).tokens
    assert first != pipe(PROMPT, seed=1).tokens
    drawn = [pipe(PROMPT, generator=torch.Generator().manual_seed(8)).seeds for _ in range(2)]
    assert drawn[0] == drawn[1]
    each = pipe([PROMPT] * 2, generator=[torch.Generator().manual_seed(8), torch.Generator().manual_seed(8)])
    assert each.seeds == drawn[0] * 2 and each.tokens[0] == each.tokens[1]
    torch.manual_seed(4)
    unseeded = pipe(PROMPT).seeds
    torch.manual_seed(4)
    assert pipe(PROMPT).seeds == unseeded


def test_callback_and_interrupt(pipe) -> None:
    """The callback sees every round and can stop the run; what is not drawn stays grey."""
    seen = []

    def watch(pipe, step: int, position: int, found: dict) -> None:
        seen.append((step, position, found["tokens"][0]))
        pipe.interrupt = position >= 20

    out = pipe(PROMPT, seed=2, callback_on_step_end=watch, output_type="np")
    assert [step for step, _, _ in seen] == list(range(len(seen)))
    assert 20 <= len(out.tokens[0]) < 64 and out.tokens[0] == seen[-1][2]
    assert np.all(out.images[0, -1] == 0.75) and not np.all(out.images[0, 0] == 0.75)
    assert len(pipe(PROMPT, seed=2).tokens[0]) == 64


def test_stream(pipe) -> None:
    """Partial pictures become the whole; two streams at once do not disturb each other."""
    whole = pipe(PROMPT, seed=9)
    one, other = pipe.stream(PROMPT, seed=9), pipe.stream("a cat", seed=1)
    parts = [(a, b) for a, b in zip(one, other)]
    last = [parts[-1][0], *one][-1]
    assert last.tokens[0][: len(parts[-1][0].tokens[0])] == parts[-1][0].tokens[0]
    assert whole.tokens[0][: last.position] == last.tokens[0]
    assert last.images()[0].size == (16, 16)


def test_save_and_load(pipe, tmp_path: Path) -> None:
    """A saved pipeline gives the same tokens, and drafters and card travel along."""
    folder = tmp_path / "saved"
    (pipe.folder / "README.md").write_text("card")
    (pipe.folder / "drafters" / "mine").mkdir(parents=True, exist_ok=True)
    (pipe.folder / "drafters" / "mine" / "config.json").write_text("{}")
    try:
        pipe.save_pretrained(folder)
    finally:
        shutil.rmtree(pipe.folder / "drafters")
        (pipe.folder / "README.md").unlink()
    assert (folder / "README.md").read_text() == "card" and zoo.drafters(folder) == ["mine"]
    again = TextToImagePipeline.from_pretrained(folder, torch_dtype=torch.float64)
    again.set_progress_bar_config(disable=True)
    assert again(PROMPT, seed=4).tokens == pipe(PROMPT, seed=4).tokens


def test_precision(model_folder: Path) -> None:
    """The transformer takes the dtype, the VQ model stays in float32; settings may be overridden on loading."""
    found = TextToImagePipeline.from_pretrained(model_folder, torch_dtype=torch.bfloat16, guidance_scale=4.0)
    assert found.transformer.dtype == torch.bfloat16 and found.vqvae.dtype == torch.float32
    assert found.config.guidance_scale == 4.0
    found.to(torch.float64)
    assert found.target.dtype == torch.float64 and found.vqvae.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": [PROMPT, " "]}, "the prompt is empty"),
        ({"prompt": []}, "list of prompts is empty"),
        ({"prompt": 3}, "prompt must be a string or a list of strings, not int"),
        ({"prompt": "heart " * 80}, r"has \d+ tokens and this model reads at most 48"),
        ({"guidance_scale": 20.5}, "guidance_scale=20.5 is out of range: give a number from 0 to 20"),
        ({"guidance_scale": -1}, "guidance_scale=-1 is out of range"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan is out of range"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt=0"),
        ({"temperature": -1.0}, "temperature=-1.0 is out of range"),
        ({"top_k": -1}, "top_k=-1 is out of range"),
        ({"top_p": 1.5}, "top_p=1.5 is out of range"),
        ({"seed": -1}, "seed=-1 is out of range"),
        ({"seed": [1, 2]}, "2 seeds were given for 1 pictures"),
        ({"seed": 1, "generator": torch.Generator()}, "both seed and generator were given"),
        ({"generator": [torch.Generator()] * 3}, "3 generators were given for 1 pictures"),
        ({"drafter": "jakobi"}, "unknown drafter 'jakobi': did you mean 'jacobi'"),
        ({"drafter": "medusa"}, "drafter 'medusa' has no weights for this model"),
        ({"acceptance": "exakt"}, "unknown acceptance 'exakt': did you mean 'exact'"),
        ({"acceptance": "tolerance:0"}, "tolerance takes one whole number from 1 to 64"),
        ({"output_type": "pill"}, "unknown output_type 'pill': did you mean 'pil'"),
    ],
)
def test_refusals(pipe, options: dict, text: str) -> None:
    """Each wrong call says what is wrong."""
    with pytest.raises(MmspecError, match=text):
        pipe(**({"prompt": PROMPT} | options))


def test_special_tokens_in_a_prompt_are_text(pipe) -> None:
    """A prompt cannot smuggle in the token that opens the picture."""
    image = pipe.tokenizer.convert_tokens_to_ids("<image>")
    assert pipe.encode(["<image>"], 1.0).conditional[0].count(image) == 1


def test_unknown_task_model_dtype_device(model_folder: Path) -> None:
    for call, text in (
        (lambda: mmspec.pipeline("text-to-imago"), "unknown task 'text-to-imago': did you mean 'text-to-image'"),
        (lambda: mmspec.pipeline("text-to-image", "no-such-model"), "unknown model 'no-such-model'"),
        (lambda: mmspec.pipeline("text-to-image", "./no/such/model"), "no folder no/such/model"),
        (
            lambda: mmspec.pipeline("text-to-image", model_folder, dtype="bf61"),
            "unknown dtype 'bf61': did you mean 'bf16'",
        ),
        (lambda: mmspec.pipeline("text-to-image", model_folder, device="gpu"), "unknown device 'gpu'"),
        (
            lambda: TextToImagePipeline.from_pretrained(model_folder, variant="fp16"),
            "unknown option of from_pretrained 'variant'",
        ),
        (lambda: TextToImagePipeline.from_pretrained(model_folder.parent), "it has no model_index.json"),
    ):
        with pytest.raises(MmspecError, match=text):
            call()


def test_near_names(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundled model is found by name, and a misspelt one is named."""
    monkeypatch.setattr(zoo, "home", lambda: model_folder.parent)
    assert zoo.resolve("tiny") == model_folder
    assert zoo.bundled()["tiny"].bytes > 1000
    with pytest.raises(MmspecError, match="unknown model 'tinny': did you mean 'tiny'"):
        zoo.resolve("tinny")


WEIGHTS = ("transformer/model.safetensors", "vqvae/diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("name", WEIGHTS)
def test_damaged_weights(copy: Path, name: str) -> None:
    """Truncated, replaced by text, or missing: the error names the file."""
    path, whole = copy / name, (copy / name).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"version https://git-lfs.github.com/spec/v1\n", b""):
        path.write_bytes(damaged)
        with pytest.raises(MmspecError, match=f"{name} is truncated or is no safetensors file"):
            TextToImagePipeline.from_pretrained(copy)
    path.unlink()
    with pytest.raises(MmspecError, match="is missing: restore it"):
        TextToImagePipeline.from_pretrained(copy)


def test_foreign_weights(copy: Path) -> None:
    """Sound files of another model, or of another size of this one, are refused instead of loaded in part."""
    first, second = (copy / name for name in WEIGHTS)
    whole = first.read_bytes()
    shutil.copyfile(second, first)
    with pytest.raises(MmspecError, match="model.safetensors holds the weights of another model"):
        TextToImagePipeline.from_pretrained(copy)
    first.write_bytes(whole)
    config = copy / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 64', '"intermediate_size": 48'))
    with pytest.raises(MmspecError, match="transformer"):
        TextToImagePipeline.from_pretrained(copy)


@pytest.mark.parametrize(
    "name", ["model_index.json", "tokenizer/tokenizer.json", "transformer/config.json", "vqvae/config.json"]
)
def test_damaged_json(copy: Path, name: str) -> None:
    (copy / name).write_text("{ not json")
    with pytest.raises(MmspecError, match=name.split("/")[0]):
        TextToImagePipeline.from_pretrained(copy)


@pytest.mark.gpu
def test_gpu(model_folder: Path, pipe) -> None:
    """The GPU draws the same tokens as the CPU in float64."""
    found = mmspec.pipeline("text-to-image", str(model_folder), device="cuda", dtype="fp64")
    assert found(PROMPT, seed=4).tokens == pipe(PROMPT, seed=4).tokens
