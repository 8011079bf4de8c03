"""Targets by the family of a model: `config.model_type`, a table of lazy paths, and other packages' entry points."""

from importlib import import_module
from importlib.metadata import entry_points

from transformers import PreTrainedConfig, PreTrainedModel

from mmspec.errors import MmspecError
from mmspec.targets.causal import CausalTarget
from mmspec.targets.probe import is_recurrent, refuse_kind, refuse_other_heads

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
    "lfm2_vl",
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
    "qwen3_5",
    "qwen3_5_moe",
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
FAMILIES["csm"] = "mmspec.targets.csm:CsmTarget"
FAMILIES["qwen2_5_omni_talker"] = "mmspec.targets.talker:TalkerTarget"
FAMILIES["minimax"] = "mmspec.targets.recurrent:MiniMaxTarget"

# What takes their place where some layers are recurrent.
RECURRENT = {
    "mmspec.targets.causal:CausalTarget": "mmspec.targets.recurrent:RecurrentTarget",
    "mmspec.targets.vision_language:VisionLanguageTarget": "mmspec.targets.recurrent:RecurrentReader",
}


def families() -> dict[str, str]:
    """Paths of target classes by model type: those of mmspec, and those registered under `mmspec.targets`."""
    return FAMILIES | {
        entry.name: entry.value for entry in entry_points(group="mmspec.targets") if entry.name not in FAMILIES
    }


def check_kind(kind: type[PreTrainedModel], config: PreTrainedConfig) -> None:
    """Raise MmspecError for a class and a configuration that do not answer with text, before there is a model."""
    if config.model_type in TRANSCRIBERS:
        raise MmspecError(
            f"{kind.__name__} has an encoder and does not chat: give mmspec.speculate to its own generate "
            "(docs/transformers.md)"
        )
    refuse_kind(kind, config, target_class(config).layer_kinds)
    refuse_other_heads(kind, config, families().keys() - {"csm"})


def target_of(model: PreTrainedModel, weights_hash: str = "", check: bool = True) -> CausalTarget:
    """The model as its family's target. Raises MmspecError for a model that is not understood."""
    return target_class(model.config)(model, weights_hash=weights_hash, check=check)


def target_class(config: PreTrainedConfig) -> type[CausalTarget]:
    """The target of the models of a configuration."""
    path = families().get(config.model_type, "mmspec.targets.causal:CausalTarget")
    if is_recurrent(config):
        path = RECURRENT.get(path, path)
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise MmspecError(f"the target of {config.model_type} models, {path}, does not load: {error}") from None
