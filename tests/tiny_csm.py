"""A random CSM that is small and loud."""

from functools import cache
from pathlib import Path

import torch
import transformers as hub
from tiny_janus import letters
from transformers import PreTrainedModel, ProcessorMixin

CODES, BOOKS, TEXT = 32, 4, 70
# Samples of a frame, with the released model's strides.
FRAME = 1920
MARKS = ("<pad>", "<unk>", "<|AUDIO|>", "<|audio_eos|>", "<|begin_of_text|>", "<|end_of_text|>")
PAD, _, AUDIO, AUDIO_EOS, BOS, EOS = range(6)
# As the released processor writes a conversation.
TEMPLATE = (
    "{% for m in messages %}{% for part in m.content %}{% if part.type == 'text' %}<|begin_of_text|>[{{ m.role }}]"
    "{{ part.text }}<|end_of_text|>{% else %}<|AUDIO|><|audio_eos|>{% endif %}{% endfor %}{% endfor %}"
)
PROMPTS = [[BOS, 13, 9, 12, EOS], [BOS, 15, EOS], [BOS, 30, 31, 9, 22, 24, 8, EOS]]


def loud(model: PreTrainedModel) -> PreTrainedModel:
    """Random weights that are large enough for logits to depend on everything, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, weight in model.named_parameters():
            if name.startswith("codec_model"):
                continue
            if weight.ndim > 1:
                fan = weight.shape[1] if "codebooks_head" in name else weight[0].numel()
                std = 0.7 if "emb" in name and "projector" not in name else 2.5 / fan**0.5
                torch.nn.init.normal_(weight, std=std)
    return model.double().eval()


@cache
@torch.inference_mode(False)
def csm() -> PreTrainedModel:
    """Four codebooks, and a Mimi of 24 kHz."""
    depth = dict(
        num_codebooks=BOOKS,
        backbone_hidden_size=32,
        vocab_size=CODES,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=BOOKS + 1,
    )
    codec = dict(
        model_type="mimi",
        hidden_size=16,
        num_filters=4,
        num_residual_layers=1,
        codebook_size=CODES,
        codebook_dim=8,
        vector_quantization_hidden_dimension=8,
        num_quantizers=BOOKS,
        num_semantic_quantizers=1,
        upsample_groups=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=32,
        sliding_window=8,
    )
    config = hub.CsmConfig(
        num_codebooks=BOOKS,
        vocab_size=CODES,
        text_vocab_size=TEXT,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=PAD,
        bos_token_id=BOS,
        audio_token_id=AUDIO,
        audio_eos_token_id=AUDIO_EOS,
        codebook_pad_token_id=CODES - 1,
        codebook_eos_token_id=0,
        depth_decoder_config=depth,
        codec_config=codec,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return loud(hub.CsmForConditionalGeneration(config))


def csm_processor() -> ProcessorMixin:
    """Words are letters."""
    special = dict(pad_token="<pad>", unk_token="<unk>", bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")
    text = letters(MARKS, **special)
    text.add_special_tokens({"additional_special_tokens": ["<|AUDIO|>", "<|audio_eos|>"]})
    ear = hub.EncodecFeatureExtractor(sampling_rate=24_000)
    return hub.CsmProcessor(ear, text, chat_template=TEMPLATE)


def save_csm(folder: Path) -> Path:
    """A folder as `save_pretrained` of transformers makes it."""
    csm().save_pretrained(folder)
    csm_processor().save_pretrained(folder)
    return folder
