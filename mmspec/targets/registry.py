"""Targets by the family of a model: `config.model_type`, a table of lazy paths, and other packages' entry points."""

from importlib import import_module
from importlib.metadata import entry_points

from transformers import PreTrainedModel

from mmspec.errors import MmspecError
from mmspec.targets.causal import CausalTarget

# Models that read pictures or sounds into their prompt, and that are known to give their own tokens
# (tests/targets/test_vlm_families.py).
READERS = (
    "aria",
    "audioflamingo3",
    "aya_vision",
    "cohere2_vision",
    "deepseek_vl",
    "deepseek_vl_hybrid",
    "emu3",
    "ernie4_5_vl_moe",
    "exaone4_5",
    "gemma3",
    "gemma4",
    "glm46v",
    "glm4v",
    "glm4v_moe",
    "glm_ocr",
    "glmasr",
    "got_ocr2",
    "granite_speech",
    "hunyuan_vl",
    "idefics2",
    "idefics3",
    "internvl",
    "janus",
    "kimi_k25",
    "lighton_ocr",
    "llava",
    "llava_next",
    "llava_next_video",
    "llava_onevision",
    "mistral3",
    "musicflamingo",
    "ovis2",
    "paddleocr_vl",
    "paligemma",
    "qwen2_5_omni_thinker",
    "qwen2_5_vl",
    "qwen2_audio",
    "qwen2_vl",
    "qwen3_asr",
    "qwen3_omni_moe_thinker",
    "qwen3_vl",
    "qwen3_vl_moe",
    "smolvlm",
    "video_llama_3",
    "vipllava",
    "voxtral",
)

# Encoder-decoder models whose decoders take positions, and that are known to give their own tokens
# (tests/targets/test_encoder_decoder.py).
TRANSCRIBERS = ("canary", "cohere_asr", "moonshine", "t5gemma", "whisper")

# Families whose models are not causal language models; all others are tried as `CausalTarget`.
FAMILIES = dict.fromkeys(READERS, "mmspec.targets.vision_language:VisionLanguageTarget")
FAMILIES |= dict.fromkeys(TRANSCRIBERS, "mmspec.targets.encoder_decoder:EncoderDecoderTarget")


def families() -> dict[str, str]:
    """Paths of target classes by model type: those of mmspec, and those registered under `mmspec.targets`."""
    return FAMILIES | {
        entry.name: entry.value for entry in entry_points(group="mmspec.targets") if entry.name not in FAMILIES
    }


def target_of(model: PreTrainedModel, weights_hash: str = "", check: bool = True) -> CausalTarget:
    """The model as its family's target. Raises MmspecError for a model that is not understood."""
    path = families().get(model.config.model_type, "mmspec.targets.causal:CausalTarget")
    module, _, name = path.partition(":")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise MmspecError(f"the target of {model.config.model_type} models, {path}, does not load: {error}") from None
    return kind(model, weights_hash=weights_hash, check=check)
