"""The model that ships: real weights, real codes, every drafter."""

from functools import cache

import pytest
import torch
from PIL import Image

from mmspec import drafters, zoo
from mmspec.cli import main
from mmspec.decode import Stop, generate
from mmspec.pipelines.text_to_image import TextToImagePipeline
from mmspec.sampling import Sampling

NAMES = ["lookup", "jacobi", "medusa", "hawk", "hawk-path"]


@cache
def pipe() -> TextToImagePipeline:
    return TextToImagePipeline.from_pretrained("emoji-64", torch_dtype=torch.float64)


@cache
def reference(temperature: float, guidance: float) -> list[list[int]]:
    target, prompts = pipe().target, pipe().encode(["a red heart, 3d style", "a pizza on a blue background"], guidance)
    return generate(target, prompts, 2, Stop(64), sampling=Sampling(temperature), seeds=5).tokens


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("temperature", "guidance"), [(0.0, 1.0), (0.7, 2.0), (1.0, 2.0)])
def test_same_tokens_as_plain_decoding(name: str, temperature: float, guidance: float) -> None:
    """equality: in fp64 each drafter gives the tokens of AR, in a batch of two."""
    target, prompts = pipe().target, pipe().encode(["a red heart, 3d style", "a pizza on a blue background"], guidance)
    drafter = drafters.load(name, pipe().folder, target)
    found = generate(target, prompts, 2, Stop(64), drafter, sampling=Sampling(temperature), seeds=5)
    assert found.tokens == reference(temperature, guidance)


def test_drafting_pays() -> None:
    """Drafts are accepted: more than two and a half tokens a round with weights and without."""
    target, prompts = pipe().target, pipe().encode(["a red heart, 3d style"], 2.0)
    for name, least in (("hawk-path", 2.5), ("jacobi", 2.5)):
        drafter = drafters.load(name, pipe().folder, target)
        stats = generate(target, prompts, 1, Stop(96), drafter, seeds=1).stats
        assert stats.mean_acceptance_length > least


def test_a_picture_from_the_command_line(tmp_path) -> None:
    """`mmspec image` writes a 64×64 PNG that says how it was made, the same with and without a drafter."""
    for name in ("hawk-path", "none"):
        with pytest.raises(SystemExit) as end:
            main(
                [
                    "image",
                    "a red heart, 3d style",
                    "-o",
                    str(tmp_path / f"{name}.png"),
                    "--seed",
                    "3",
                    "--drafter",
                    name,
                    "--dtype",
                    "fp64",
                    "--quiet",
                ]
            )
        assert end.value.code == 0
    drafted, plain = (Image.open(tmp_path / f"{name}.png") for name in ("hawk-path", "none"))
    assert drafted.size == (64, 64) and drafted.text["seed"] == "3" and drafted.text["lossless"] == "yes"
    assert drafted.tobytes() == plain.tobytes()


def test_the_drafters_know_their_target() -> None:
    """Every bundled drafter records the hash of the weights it was trained on."""
    folder = zoo.resolve("emoji-64")
    assert zoo.drafters(folder) and pipe().target.hash == zoo.weights_hash(folder / "transformer")
    for name in zoo.drafters(folder):
        assert f'"target": "{pipe().target.hash}"' in (folder / "drafters" / name / "config.json").read_text()
