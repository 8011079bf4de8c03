"""Random encoder-decoder models beside Whisper that are small and loud, and things for them to hear or read."""

from functools import cache

import torch
import transformers as hub
from tiny_whisper import FRAMES, PROMPTS, heard, loud, whisper
from torch import Tensor
from transformers import PreTrainedModel

TEXT = dict(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
    tie_word_embeddings=False,
)
EAR = dict(
    model_type="parakeet_encoder",
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    subsampling_conv_channels=8,
    num_mel_bins=16,
    max_position_embeddings=64,
    scale_input=False,
)
# Lengths of what is heard or read: samples, frames or tokens.
LENGTHS = {"whisper": (FRAMES,) * 3, "moonshine": (3000, 5000, 2400), "cohere_asr": (70, 120, 40)}
LENGTHS["canary"] = LENGTHS["cohere_asr"]
LENGTHS["t5gemma"] = (7, 12, 4)


def _config(name: str) -> hub.PreTrainedConfig:
    if name == "moonshine":
        sizes = {key: value for key, value in TEXT.items() if not key.startswith("num_")}
        layers = dict(encoder_num_hidden_layers=2, decoder_num_hidden_layers=3)
        heads = dict(encoder_num_attention_heads=4, decoder_num_attention_heads=4, decoder_num_key_value_heads=2)
        return hub.MoonshineConfig(**sizes, **layers, **heads)
    if name == "cohere_asr":
        return hub.CohereAsrConfig(**TEXT, encoder_config=EAR)
    if name == "canary":
        decoder = {
            key: value for key, value in TEXT.items() if key not in ("tie_word_embeddings", "decoder_start_token_id")
        }
        ear = EAR | dict(hidden_size=32)
        special = {key: TEXT[key] for key in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
        return hub.CanaryConfig(
            **special,
            encoder_config=ear,
            decoder_config=decoder | dict(head_dim=8),
            decoder_start_token_id=1,
            tie_word_embeddings=False,
        )
    part = dict(TEXT, head_dim=8, sliding_window=5, query_pre_attn_scalar=8)
    part.pop("decoder_start_token_id")
    return hub.T5GemmaConfig(
        encoder=part | dict(num_hidden_layers=2),
        decoder=part,
        vocab_size=60,
        tie_word_embeddings=False,
        decoder_start_token_id=1,
    )


@cache
@torch.inference_mode(False)
def model(name: str) -> PreTrainedModel:
    """A random model of a family."""
    if name == "whisper":
        return whisper()
    config = _config(name)
    made = loud(getattr(hub, type(config).__name__.removesuffix("Config") + "ForConditionalGeneration")(config))
    made.generation_config.eos_token_id = None
    made.generation_config.decoder_start_token_id = 1
    made.generation_config.pad_token_id = 0
    return made


def asked(name: str, row: int) -> dict[str, Tensor]:
    """What a processor gives for one row."""
    length = LENGTHS[name][row]
    rng = torch.Generator().manual_seed(row)
    if name == "whisper":
        return {"input_features": heard()[row : row + 1]}
    if name == "t5gemma":
        return {"input_ids": torch.randint(3, 60, (1, length), generator=rng)}
    shape, key = ((1, length), "input_values") if name == "moonshine" else ((1, length, 16), "input_features")
    return {key: torch.randn(shape, generator=rng).double()}


def prompt(name: str, row: int) -> list[int]:
    """What the decoder of a row begins with: rows of different length."""
    return PROMPTS[row] if name == "whisper" else [1, *range(5, 5 + 2 * row)]
