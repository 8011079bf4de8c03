"""A random Qwen2.5-Omni that is small and loud: a thinker and a talker, and a vocoder as small as it goes."""

from functools import cache

import torch
import transformers as hub
from tiny_whisper import loud
from transformers import PreTrainedModel

CODES, TEXT = 60, 80
MASK, PAD, BOS, EOS = 56, 57, 58, 59
TEXT_BOS, TEXT_EOS, TEXT_PAD = 70, 71, 72
ROPE = dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2])
BODY = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    rope_parameters=ROPE,
)
EAR = dict(num_mel_bins=8, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, d_model=16, output_dim=32)
EYE = dict(
    depth=1,
    hidden_size=16,
    intermediate_size=16,
    num_heads=2,
    patch_size=4,
    out_hidden_size=32,
    fullatt_block_indexes=[0],
)


@cache
@torch.inference_mode(False)
def omni() -> PreTrainedModel:
    """The whole model, but for a vocoder that gives the codes as they are."""
    thinker = dict(
        text_config=dict(BODY, vocab_size=TEXT),
        audio_config=dict(EAR, n_window=4, max_source_positions=16),
        vision_config=EYE,
        audio_token_id=73,
        image_token_id=74,
        video_token_id=75,
        audio_token_index=73,
        image_token_index=74,
        video_token_index=75,
        pad_token_id=0,
        vision_start_token_id=76,
    )
    talker = dict(
        BODY,
        hidden_size=24,
        head_dim=8,
        embedding_size=32,
        vocab_size=CODES,
        tts_text_start_token_id=TEXT_BOS,
        tts_text_end_token_id=TEXT_EOS,
        tts_text_pad_token_id=TEXT_PAD,
        tts_codec_start_token_id=BOS,
        tts_codec_end_token_id=EOS,
        tts_codec_pad_token_id=PAD,
        tts_codec_mask_token_id=MASK,
        audio_token_index=73,
        image_token_index=74,
        video_token_index=75,
        vision_start_token_id=76,
    )
    config = hub.Qwen2_5OmniConfig(thinker_config=thinker, talker_config=talker, enable_audio_output=False)
    model = hub.Qwen2_5OmniForConditionalGeneration(config)
    model.talker = hub.Qwen2_5OmniTalkerForConditionalGeneration(config.talker_config)
    return loud(model)


class Vocoder(torch.nn.Module):
    """In the place of `token2wav`: codes as they are."""

    dtype = torch.float

    def forward(self, codes: torch.Tensor, **_: object) -> torch.Tensor:
        return codes.float()
