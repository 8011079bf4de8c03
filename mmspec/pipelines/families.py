"""Folders of models that draw or speak, told by their small files alone; this module imports no torch."""

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from mmspec import zoo
from mmspec.errors import MmspecError

if TYPE_CHECKING:
    from mmspec.pipelines.artist import Artist
    from mmspec.pipelines.speaker import Speaker

# Who prepares prompts for the models of a family and paints what they draw.
ARTISTS = {
    "chameleon": "mmspec.pipelines.artist:ChameleonArtist",
    "emu3": "mmspec.pipelines.artist:Emu3Artist",
    "janus": "mmspec.pipelines.artist:JanusArtist",
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

# Families whose codes transformers cannot decode.
WITHOUT_DECODER = ("chameleon",)


def no_decoder(family: str) -> MmspecError:
    """The error for codes that transformers cannot decode."""
    return MmspecError(
        f"transformers has no decoder for the codes of {family} models: output_type='latent' gives the codes "
        "themselves, and image_tokenizer=, given to pipeline(), decodes them (ImageTokenizer in mmspec.codecs.base)"
    )


def check_decoder(family: str) -> None:
    """Raise MmspecError for a family whose codes transformers cannot decode."""
    if family in WITHOUT_DECODER:
        raise no_decoder(family)


def model_type(folder: Path) -> str:
    """The family that a folder's config.json names, "" if it names none."""
    path = folder / "config.json"
    try:
        return str(json.loads(path.read_text()).get("model_type") or "")
    except (OSError, ValueError, AttributeError) as error:
        raise MmspecError(f"{path} cannot be read ({error}): restore it from the model's source") from None


def draws(folder: Path) -> bool:
    """Whether a folder holds a model of transformers that draws."""
    return not (folder / zoo.INDEX).is_file() and model_type(folder) in ARTISTS


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


def speaker_family(folder: Path) -> str:
    """The family of a folder that holds a speech language model, "" if it holds none."""
    if (folder / COSYVOICE).is_file():
        return "cosyvoice2"
    if (folder / zoo.INDEX).is_file() or not (folder / "config.json").is_file():
        return ""
    if (family := model_type(folder)) in SPEAKERS:
        return family
    files = (folder / name for name in ("tokenizer.json", "tokenizer_config.json"))
    text = next((file.read_bytes() for file in files if file.is_file()), b"")
    return next((family for token, family in SPEECH_TOKENS.items() if json.dumps(token).encode() in text), "")


def check_speaker(folder: Path) -> str:
    """The family of a folder. Raises MmspecError for one that holds no speech language model."""
    family = speaker_family(folder)
    if not family and model_type(folder) in ANSWERERS:
        raise MmspecError(
            f"{folder} holds a {model_type(folder)}, which speaks its answers, and not a text: in Python, "
            "model.generate(..., talker_custom_generate=mmspec.speculate()) says them sooner (docs/transformers.md)"
        )
    if not family:
        raise MmspecError(
            f"{folder} holds a model of the family {model_type(folder) or '(none)'}, which does not speak: use one of "
            f"{', '.join(SPEAKERS)}, or a folder that mmspec made"
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
