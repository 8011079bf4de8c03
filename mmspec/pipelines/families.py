"""Folders of models that draw or speak, told by their small files alone; this module imports no torch."""

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from mmspec import zoo
from mmspec.errors import MmspecError, unknown

if TYPE_CHECKING:
    from mmspec.pipelines.artist import Artist
    from mmspec.pipelines.family_image import FamilyImagePipeline
    from mmspec.pipelines.speaker import Speaker

# Who prepares prompts for the models of a family and paints what they draw.
ARTISTS = {
    "chameleon": "mmspec.pipelines.chameleon:ChameleonArtist",
    "emu3": "mmspec.pipelines.artist:Emu3Artist",
    "glm_image": "mmspec.pipelines.glm_image:GlmImageArtist",
    "janus": "mmspec.pipelines.artist:JanusArtist",
    "llamagen": "mmspec.pipelines.llamagen:LlamaGenArtist",
    "lumina_mgpt": "mmspec.pipelines.chameleon:LuminaArtist",
}

# Who prepares prompts for the speech language models of a family: the model types of `config.json`, and names of those
# that are plain language models by it.
SPEAKERS = {
    "cosyvoice2": "mmspec.pipelines.cosyvoice:CosyVoiceSpeaker",
    "csm": "mmspec.pipelines.csm:CsmSpeaker",
    "llasa": "mmspec.pipelines.speakers:LlasaSpeaker",
    "orpheus": "mmspec.pipelines.speakers:OrpheusSpeaker",
    "outetts": "mmspec.pipelines.outetts:OuteSpeaker",
}

# Tokens that tell families which are plain language models otherwise.
SPEECH_TOKENS = {"<custom_token_10>": "orpheus", "<|s_0|>": "llasa", "<|c1_0|>": "outetts"}

# The language model of a CosyVoice 2 folder, beside the folder of the text model that it was made from.
COSYVOICE, COSYVOICE_TEXT = "llm.pt", "CosyVoice-BlankEN"

# Families that speak what they answer.
ANSWERERS = ("qwen2_5_omni",)

# Families for whose codes mmspec has no codec.
WITHOUT_CODEC = ("cosyvoice2",)
# Families that have a pipeline of their own; those of diffusers go by the class that their index names.
PIPELINES = {
    "GlmImagePipeline": "mmspec.pipelines.glm_image:GlmImagePipeline",
    "llamagen": "mmspec.pipelines.llamagen:LlamaGenPipeline",
}

# Families whose codes transformers cannot decode, and what can.
VQGAN = (
    "put vqgan.ckpt and vqgan.yaml, from tokenizer/ of the original Chameleon checkpoint, into the model's folder, or "
    "give the file as --image-tokenizer, image_tokenizer= in Python"
)
WITHOUT_DECODER = {
    "chameleon": VQGAN,
    "glm_image": "the second stage of its diffusers pipeline paints them: give the whole folder, with its "
    "model_index.json, such as zai-org/GLM-Image",
    "lumina_mgpt": VQGAN,
}


def no_decoder(family: str) -> MmspecError:
    """The error for codes that transformers cannot decode."""
    return MmspecError(
        f"transformers has no decoder for the codes of {family} models: {WITHOUT_DECODER[family]}; "
        "output_type='latent' gives the codes themselves"
    )


def decoder_file(path: Path) -> Path | None:
    """The VQ decoder of an original checkpoint: the file `path`, or the one in a folder as Meta or Lumina-mGPT lay it
    out.
    """
    parts = (path, path / "tokenizer", path / "original_tokenizers")
    files = [part / f"vqgan.{suffix}" for part in parts for suffix in ("safetensors", "ckpt")]
    return next((file for file in (path, *files) if file.is_file()), None)


def given_decoder(path: Path) -> Path:
    """The VQ decoder at a path that was given. Raises MmspecError if there is none."""
    file = decoder_file(path)
    if file is None:
        raise MmspecError(
            f"{path} holds no VQ decoder: give vqgan.ckpt of the original checkpoint, vqgan.safetensors, or a folder "
            "with one"
        )
    return file


def check_decoder(family: str, folder: Path, given: str | Path | None = None) -> None:
    """Raise MmspecError where codes cannot be decoded: nothing lies at `given`, or the family lacks what it needs."""
    if given is not None:
        given_decoder(Path(given))
    if given is not None and family not in WITHOUT_DECODER:
        raise MmspecError(f"{family} models decode by their own VQ model: leave the image tokenizer out")
    if given is None and family in WITHOUT_DECODER and decoder_file(folder) is None:
        raise no_decoder(family)


def family_of(config: dict) -> str:
    """The family that a configuration names, "" if it names none.

    Lumina-mGPT's `model_type` is Chameleon's. It is told by its architecture, ChameleonXLLMXForConditionalGeneration,
    or by z_loss_weight, the field that its configuration class adds.
    """
    family, names = str(config.get("model_type") or ""), config.get("architectures") or []
    lumina = "z_loss_weight" in config or any("ChameleonXLLMX" in str(name) for name in names)
    return "lumina_mgpt" if family == "chameleon" and lumina else family


def model_family(folder: Path) -> str:
    """The family that a folder's config.json names, "" if it names none."""
    return family_of(read_config(folder))


def read_config(folder: Path) -> dict:
    """A folder's config.json as data."""
    return zoo.read_object(folder / "config.json")


def folder_family(folder: Path) -> str:
    """The family of a folder: the class that its index names, or what its config.json or its files tell."""
    if (folder / zoo.INDEX).is_file():
        return str(zoo.read_index(folder).get("_class_name"))
    if (folder / COSYVOICE_TEXT).is_dir():
        return "cosyvoice2"
    return "llamagen" if zoo.released(folder) else model_family(folder)


def draws(folder: Path) -> bool:
    """Whether a folder holds a model of transformers, or a pipeline of diffusers, that draws."""
    return folder_family(folder) in ARTISTS | PIPELINES


def example_prompts(folder: Path) -> tuple[str, ...]:
    """What to draw with a model that does not take any text, such as the classes of LlamaGen's own sampler."""
    classes = folder_family(folder) == "llamagen" and (
        any(file.name.startswith("c2i_") for file in zoo.released(folder)) or read_config(folder).get("classes")
    )
    return ("207", "360", "387", "974", "88", "979", "417", "279") if classes else ()


def artist_family(folder: Path) -> str:
    """The family of a folder of transformers. Raises MmspecError for one that does not draw."""
    family = folder_family(folder)
    if family not in ARTISTS:
        raise MmspecError(
            f"{folder} holds a model of the family {family or '(none)'}, with which mmspec cannot draw: use one of "
            f"{', '.join(ARTISTS)}, or a folder that mmspec made"
        )
    return family


def check_family(family: str) -> None:
    """Raise MmspecError for a family that does not draw."""
    if family not in ARTISTS:
        raise unknown("family", family, ARTISTS)


def artist_class(family: str) -> "type[Artist]":
    """The artist of a family."""
    check_family(family)
    module, _, name = ARTISTS[family].partition(":")
    return getattr(import_module(module), name)


def pipeline_class(folder: Path) -> "type[FamilyImagePipeline]":
    """The pipeline for a folder that `draws`."""
    path = PIPELINES.get(folder_family(folder), "mmspec.pipelines.family_image:FamilyImagePipeline")
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def speaker_family(folder: Path) -> str:
    """The family of a folder that holds a speech language model, "" if it holds none."""
    if (folder / zoo.INDEX).is_file():
        return ""
    if (family := folder_family(folder)) in SPEAKERS:
        return family
    files = (folder / name for name in ("tokenizer.json", "tokenizer_config.json"))
    text = next((file.read_bytes() for file in files if file.is_file()), b"")
    return next((family for token, family in SPEECH_TOKENS.items() if json.dumps(token).encode() in text), "")


def check_speaker(folder: Path) -> str:
    """The family of a folder. Raises MmspecError for one that holds no speech language model."""
    family = speaker_family(folder)
    if not family and folder_family(folder) in ANSWERERS:
        raise MmspecError(
            f"{folder} holds a {folder_family(folder)}, which speaks its answers, and not a text: in Python, "
            "model.generate(..., talker_custom_generate=mmspec.speculate()) says them sooner (docs/transformers.md)"
        )
    if not family:
        raise MmspecError(
            f"{folder} holds a model of the family {folder_family(folder) or '(none)'}, which does not speak: use one "
            f"of {', '.join(SPEAKERS)}, or a folder that mmspec made"
        )
    return family


def no_codec(family: str) -> MmspecError:
    """The error for codes of which mmspec makes no sound."""
    return MmspecError(
        f"mmspec has no vocoder for the codes of {family} models: output_type='codes', or -o FILE.json, gives the "
        "codes themselves, and codec=, given to pipeline(), makes sound of them (Codec in mmspec.codecs.base)"
    )


def speaker_class(family: str) -> "type[Speaker]":
    """The speaker of a family."""
    module, _, name = SPEAKERS[family].partition(":")
    return getattr(import_module(module), name)
