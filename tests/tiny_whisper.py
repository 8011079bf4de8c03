"""A random Whisper that is small and loud, and things for it to hear."""

from functools import cache

import torch
import transformers as hub
from torch import Tensor
from transformers import PreTrainedModel

FRAMES, MELS, TARGET_POSITIONS = 20, 8, 48
EOS, SOT, ENGLISH, FRENCH, TRANSLATE, TRANSCRIBE, LM, PREVIOUS, SILENCE, NO_TIMES = range(30, 40)
VOCABULARY = NO_TIMES + 1 + 21
# What the decoder begins with: language, task, and that there are no timestamps.
PROMPTS = [[SOT, ENGLISH, TRANSCRIBE, NO_TIMES], [SOT, FRENCH], [PREVIOUS, 4, 9, SOT, FRENCH, TRANSLATE, NO_TIMES]]


def loud(model: PreTrainedModel) -> PreTrainedModel:
    """Random weights that are large enough for logits to depend on everything, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                wide = 4.0 if "proj_out" in name or "lm_head" in name else 1.8
                torch.nn.init.normal_(weight, std=0.5 if "emb" in name else wide / weight[0].numel() ** 0.5)
            elif name.endswith("bias"):
                torch.nn.init.normal_(weight, std=0.1)
    return model.double().eval()


@cache
@torch.inference_mode(False)
def whisper(attention: str = "sdpa") -> PreTrainedModel:
    """Twenty frames in, ten vectors encoded; two layers in the encoder and three in the decoder."""
    config = hub.WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=MELS,
        d_model=32,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=FRAMES // 2,
        max_target_positions=TARGET_POSITIONS,
        pad_token_id=EOS,
        bos_token_id=EOS,
        eos_token_id=EOS,
        decoder_start_token_id=SOT,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        tie_word_embeddings=False,
        attn_implementation=attention,
    )
    model = loud(hub.WhisperForConditionalGeneration(config))
    special = dict(
        is_multilingual=True,
        lang_to_id={"<|en|>": ENGLISH, "<|fr|>": FRENCH},
        task_to_id={"translate": TRANSLATE, "transcribe": TRANSCRIBE},
        no_timestamps_token_id=NO_TIMES,
        prev_sot_token_id=PREVIOUS,
        max_initial_timestamp_index=8,
        suppress_tokens=[1, 2, 7, ENGLISH, FRENCH, SOT, LM, PREVIOUS, SILENCE],
        begin_suppress_tokens=[3, EOS],
        max_length=TARGET_POSITIONS,
    )
    for name, value in special.items():
        setattr(model.generation_config, name, value)
    return model


def heard(rows: int = 3, frames: int = FRAMES) -> Tensor:
    """Features `row mel frame` of sounds."""
    return torch.randn(rows, MELS, frames, generator=torch.Generator().manual_seed(3)).double()
