"""Chameleon's kin by the public way: folders as they are published, decoded by the original checkpoint's VQGAN."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_chameleon import (
    BOI,
    BOS,
    BREAK,
    CODES,
    SIDE,
    SIZES,
    TURN,
    decoder_state,
    lumina_tokenizer,
    save_chameleon,
    save_lumina,
)
from tiny_chameleon import lumina as lumina_model
from tiny_janus import save_janus
from tiny_vqgan import vqgan_pixels, write_vqgan

import mmspec
from mmspec import cli
from mmspec.codecs.vqgan import VQGANTokenizer
from mmspec.errors import MmspecError
from mmspec.pipelines.families import model_family
from mmspec.pipelines.family_image import FamilyImagePipeline
from mmspec.pipelines.generation_config import NEUTRAL

PROMPT = "a red cat"


@pytest.fixture(scope="module")
def anole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chameleon(tmp_path_factory.mktemp("models") / "anole", decoder=True)


@pytest.fixture(scope="module")
def lumina(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lumina(tmp_path_factory.mktemp("models") / "lumina")


def load(folder: Path, **options: object) -> FamilyImagePipeline:
    """A pipeline by the public way, in float64, the decoder too."""
    pipe = mmspec.pipeline("text-to-image", folder, device="cpu", dtype="fp64", **options)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe, FamilyImagePipeline)
    if isinstance(pipe.image_tokenizer, VQGANTokenizer):
        pipe.image_tokenizer.double()
    return pipe


def expected(pipe: FamilyImagePipeline, tokens: list[int]) -> Image.Image:
    """The picture of tokens by a forward written from the original's layout."""
    grid = pipe.grid
    codes = torch.tensor(tokens).view(1, grid.height, grid.stride)[..., : grid.width]
    pixels = vqgan_pixels(decoder_state(), codes)[0].permute(1, 2, 0)
    return Image.fromarray(((pixels + 1) / 2).clamp(0, 1).mul(255).round().byte().numpy())


@pytest.mark.parametrize("name", ["anole", "lumina"])
def test_pictures_and_seeds(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """equality: pictures to the byte; a seed's picture alone, in a batch, with any drafter, and from a saved copy."""
    folder = request.getfixturevalue(name)
    size = {"height": 12, "width": 4} if name == "lumina" else {}
    pipe = load(folder, **size)
    plain = [pipe(PROMPT, seed=seed, drafter="none") for seed in (3, 4)]
    assert plain[0].tokens != plain[1].tokens and len(plain[0].tokens[0]) == (18 if size else SIDE**2)
    for output in plain:
        (picture,) = output.images
        assert picture.size == (pipe.config.width, pipe.config.height) == ((4, 12) if size else (8, 8))
        assert picture.tobytes() == expected(pipe, output.tokens[0]).tobytes()
        assert np.asarray(picture).std() > 20
    for drafter in ("jacobi", "lookup"):
        both = pipe(PROMPT, seed=3, num_images_per_prompt=2, drafter=drafter)
        assert [image.tobytes() for image in both.images] == [output.images[0].tobytes() for output in plain]
    half = pipe.paint([plain[0].tokens[0][: pipe.grid.tokens // 2]])[0]
    assert (np.asarray(half)[-1] == 191).all() and not (np.asarray(half)[0] == 191).all()
    pipe.save_pretrained(tmp_path / "copy")
    again = load(tmp_path / "copy", **size)
    assert model_family(tmp_path / "copy") == pipe.config.family
    assert again(PROMPT, seed=3).images[0].tobytes() == plain[0].images[0].tobytes()


def test_prompts_of_lumina(lumina: Path) -> None:
    """The template, the size tokens of rows and columns, its source's guidance and top-k; wrong sizes and names."""
    pipe = load(lumina, height=12, width=4)
    prompts = pipe.encode([PROMPT], 4.0)
    text = "Generate an image of 4x12 according to the following prompt:\na red cat"
    ids = lumina_tokenizer()(text, add_special_tokens=False)["input_ids"]
    begin = [BREAK, SIZES[2], SIZES[0]]
    assert prompts.conditional == [[BOS, *ids, TURN, *begin]] and prompts.unconditional == [begin]
    assert (pipe.config.guidance_scale, pipe.sampling_defaults) == (
        4.0,
        NEUTRAL | {"temperature": 1.0, "top_k": 2000},
    )
    greedy = pipe(PROMPT, temperature=0).tokens
    assert pipe(PROMPT, seed=1, top_k=1).tokens == greedy != pipe(PROMPT, seed=1).tokens
    assert load(lumina, height=12, width=4, top_k=1)(PROMPT, seed=2).tokens == greedy
    square = load(lumina)
    assert (square.config.height, square.config.width, square.grid.tokens) == (8, 8, 20)
    for wrong, text in (
        ({"height": 8, "width": 6}, "a size of 6x8 is not possible: give multiples of 4 pixels"),
        ({"height": 20, "width": 4}, "vocabulary_map has no <reserved08805>: give a Lumina-mGPT, or a smaller size"),
    ):
        with pytest.raises(MmspecError, match=text):
            load(lumina, **wrong)


def test_prompts_of_chameleon(anole: Path) -> None:
    """The processor's ids and the picture's beginning; guided away from the beginning of a sequence."""
    prompts = load(anole).encode([PROMPT], 3.0)
    assert prompts.conditional[0][-1] == BOI and prompts.unconditional == [[BOS, BOI]] and prompts.guidance == 3.0


def test_a_family_that_is_said(lumina: Path, tmp_path: Path) -> None:
    """A configuration that lost what tells Lumina-mGPT draws as one where `family` says so, and is told once saved."""
    folder = shutil.copytree(lumina, tmp_path / "plain")
    config = json.loads((folder / "config.json").read_text())
    del config["z_loss_weight"]
    config["architectures"] = ["ChameleonForConditionalGeneration"]
    (folder / "config.json").write_text(json.dumps(config))
    assert model_family(folder) == "chameleon"
    pipe = load(folder, family="lumina_mgpt")
    assert pipe(PROMPT, seed=3).tokens == load(lumina)(PROMPT, seed=3).tokens
    pipe.save_pretrained(tmp_path / "told")
    assert model_family(tmp_path / "told") == "lumina_mgpt"
    with pytest.raises(MmspecError, match="unknown family 'lumina'"):
        load(folder, family="lumina")


def run(*arguments: object) -> int:
    """A command's exit code."""
    with pytest.raises(SystemExit) as caught:
        cli.main([*map(str, arguments), "--device", "cpu"])
    return int(caught.value.code or 0)


@pytest.mark.parametrize("name", ["anole", "lumina"])
def test_commands(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """`mmspec image` writes a picture and an animation, `mmspec verify` compares with `generate`, too."""
    folder, path, film = request.getfixturevalue(name), tmp_path / "cat.png", tmp_path / "cat.gif"
    options = ("--seed", 3, "--dtype", "fp64", "--progressive", film)
    assert run("image", "a", "cat", "--model", folder, "-o", path, *options) == 0 and film.exists()
    with Image.open(path) as picture:
        assert picture.size == (8, 8) and picture.text["prompt"] == "a cat"
        found = picture.text["guidance"], picture.text["top_k"]
    assert found == (("4.0", "2000") if name == "lumina" else ("3.0", "0"))
    findings = tmp_path / "found.json"
    options = ("--prompts", 2, "--dtype", "fp64", "--temperature", 0, 1, "--guidance", 1, 3, "--json", findings)
    assert run("verify", folder, *options) == 0
    rows = json.loads(findings.read_text())
    assert rows and all(row["equal"] == row["rows"] == 2 for row in rows)
    assert all(row["generate_equal"] == (0 if row["temperature"] else 2) for row in rows)


def test_decoders_from_elsewhere(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """A decoder by its path, in Python and by the command, without a yaml; codes without one; what is refused."""
    folder = save_chameleon(tmp_path / "model")
    file = write_vqgan(tmp_path / "elsewhere", decoder_state(), None)
    pipe, bare = load(folder, image_tokenizer=file), load(folder)
    (picture,) = pipe("a cat", seed=3).images
    codes = bare("a cat", seed=3, output_type="latent").images
    assert codes.shape == (1, SIDE, SIDE) and picture.tobytes() == expected(pipe, codes.flatten().tolist()).tobytes()
    with pytest.raises(MmspecError, match="transformers has no decoder for the codes of chameleon models: put vqgan"):
        bare("a cat")
    draw = ("image", "a", "cat", "--model", folder, "-o", tmp_path / "cat.png", "--seed", 3, "--dtype", "fp64")
    assert run(*draw, "--image-tokenizer", file.parent) == 0
    assert Image.open(tmp_path / "cat.png").size == (8, 8)
    (tmp_path / "cat.png").unlink()
    assert run(*draw) == 2 and "no decoder for the codes of chameleon" in capfd.readouterr().err
    assert run(*draw, "--image-tokenizer", tmp_path) == 2 and "holds no VQ decoder" in capfd.readouterr().err
    assert not (tmp_path / "cat.png").exists()
    state = decoder_state()
    for name, text in (
        ("quantize.embedding.weight", "belongs to another codebook: its quantize.embedding.weight"),
        ("post_quant_conv.weight", "belongs to another codebook: its post_quant_conv.weight"),
    ):
        other = write_vqgan(tmp_path / "other", state | {name: state[name].flip(0)}, None)
        with pytest.raises(MmspecError, match=text):
            load(folder, image_tokenizer=other)
        assert run(*draw, "--image-tokenizer", other) == 2 and text in capfd.readouterr().err
    with pytest.raises(MmspecError, match="holds no VQ decoder: give vqgan.ckpt"):
        load(folder, image_tokenizer=tmp_path / "none.ckpt")
    janus = save_janus(tmp_path / "janus")
    with pytest.raises(MmspecError, match="janus models decode by their own VQ model"):
        load(janus, image_tokenizer=file)
    draw = ("image", "cat", "--model", "emoji-64", "--image-tokenizer", file)
    assert run(*draw) == 2 and "leave --image-tokenizer out" in capfd.readouterr().err


def test_weights_of_lumina(lumina: Path) -> None:
    """The published layout of norms gives transformers' model, which draws without the VQ model that is left out."""
    found, whole = load(lumina).transformer.state_dict(), lumina_model().state_dict()
    assert found.keys() == {name for name in whole if ".vqmodel." not in name}
    assert all(torch.equal(value, whole[name]) for name, value in found.items())
    norm = found["model.layers.0.self_attn.q_norm.weight"]
    assert torch.equal(norm[0], norm[1]) and not torch.equal(norm[1], norm[2])


@pytest.mark.parametrize("name", ["anole", "lumina"])
def test_half_precision(name: str, request: pytest.FixtureRequest) -> None:
    """bf16, the default: the codebook is known again in it, and drafted and plain agree where it is deterministic."""
    pipe = mmspec.pipeline("text-to-image", request.getfixturevalue(name), device="cpu")
    pipe.set_progress_bar_config(disable=True)
    pipe.deterministic = True
    assert pipe.dtype == torch.bfloat16 and pipe.image_tokenizer.codebook.dtype == torch.float32
    assert pipe(PROMPT, seed=3).tokens == pipe(PROMPT, seed=3, drafter="none").tokens


class Stripes:
    """A decoder: the brightness of a pixel is its code."""

    codes, scale = len(CODES), 1

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return (codes[:, None].repeat(1, 3, 1, 1) * 10 / 127.5 - 1).double()


def test_a_decoder_of_ones_own(anole: Path) -> None:
    """An object with `decode` takes the place of the folder's."""
    pipe = load(anole, image_tokenizer=Stripes())
    output = pipe(PROMPT, seed=3)
    assert [value // 10 for value in output.images[0].convert("L").tobytes()] == output.tokens[0]
