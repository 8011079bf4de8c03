"""Folders of transformers whose models draw, told by their configuration alone; this module imports no torch."""

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from mmspec import zoo
from mmspec.errors import MmspecError

if TYPE_CHECKING:
    from mmspec.pipelines.artist import Artist
    from mmspec.pipelines.family_image import FamilyImagePipeline

# Who prepares prompts for the models of a family and paints what they draw.
ARTISTS = {
    "chameleon": "mmspec.pipelines.artist:ChameleonArtist",
    "emu3": "mmspec.pipelines.artist:Emu3Artist",
    "glm_image": "mmspec.pipelines.glm_image:GlmImageArtist",
    "janus": "mmspec.pipelines.artist:JanusArtist",
    "llamagen": "mmspec.pipelines.llamagen:LlamaGenArtist",
}

# Families that have a pipeline of their own; those of diffusers go by the class that their index names.
PIPELINES = {
    "GlmImagePipeline": "mmspec.pipelines.glm_image:GlmImagePipeline",
    "llamagen": "mmspec.pipelines.llamagen:LlamaGenPipeline",
}

# Families whose codes transformers cannot decode, and what else can.
WITHOUT_DECODER = {
    "chameleon": "image_tokenizer=, given to pipeline(), decodes them (ImageTokenizer in mmspec.codecs.base)",
    "glm_image": "the second stage of its diffusers pipeline paints them: give the whole folder, with its "
    "model_index.json, such as zai-org/GLM-Image",
}


def no_decoder(family: str) -> MmspecError:
    """The error for codes that transformers cannot decode."""
    return MmspecError(
        f"transformers has no decoder for the codes of {family} models: output_type='latent' gives the codes "
        f"themselves, and {WITHOUT_DECODER[family]}"
    )


def check_decoder(family: str) -> None:
    """Raise MmspecError for a family whose codes transformers cannot decode."""
    if family in WITHOUT_DECODER:
        raise no_decoder(family)


def model_type(folder: Path) -> str:
    """The family that a folder's config.json names, "" if it names none."""
    return str(read_config(folder).get("model_type") or "")


def read_config(folder: Path) -> dict:
    """A folder's config.json as data."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError("it must hold an object")
        return config
    except (OSError, ValueError) as error:
        raise MmspecError(f"{path} cannot be read ({error}): restore it from the model's source") from None


def family_of(folder: Path) -> str:
    """The family of a folder: the class that its index names, or the model type of its config.json."""
    if (folder / zoo.INDEX).is_file():
        return str(zoo.read_index(folder).get("_class_name"))
    return "llamagen" if zoo.released(folder) else model_type(folder)


def draws(folder: Path) -> bool:
    """Whether a folder holds a model of transformers, or a pipeline of diffusers, that draws."""
    return family_of(folder) in ARTISTS | PIPELINES


def example_prompts(folder: Path) -> tuple[str, ...]:
    """What to draw with a model that does not take any text, such as the classes of LlamaGen's own sampler."""
    classes = family_of(folder) == "llamagen" and (
        any(file.name.startswith("c2i_") for file in zoo.released(folder)) or read_config(folder).get("classes")
    )
    return ("207", "360", "387", "974", "88", "979", "417", "279") if classes else ()


def artist_family(folder: Path) -> str:
    """The family of a folder of transformers. Raises MmspecError for one that does not draw."""
    family = model_type(folder)
    if family not in ARTISTS:
        raise MmspecError(
            f"{folder} holds a model of the family {family or '(none)'}, with which mmspec cannot draw: use one of "
            f"{', '.join(ARTISTS)}, or a folder that mmspec made"
        )
    return family


def artist_class(family: str) -> "type[Artist]":
    """The artist of a family."""
    module, _, name = ARTISTS[family].partition(":")
    return getattr(import_module(module), name)


def pipeline_class(folder: Path) -> "type[FamilyImagePipeline]":
    """The pipeline for a folder that `draws`."""
    path = PIPELINES.get(family_of(folder), "mmspec.pipelines.family_image:FamilyImagePipeline")
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
