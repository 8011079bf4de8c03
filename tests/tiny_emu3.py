"""A random Emu3 that is small and loud, and its processor."""

from functools import cache
from pathlib import Path

import transformers as hub
from tiny_janus import letters, loud
from transformers import PreTrainedModel, ProcessorMixin

# Ids of the codes by number, which are not in order, and of what closes rows.
CODES, ROW_END = [100 + number * 7 % 30 for number in range(30)], 99
HEIGHT, WIDTH = 4, 3
MARKS = ("<pad>", "<s>", "</s>", "<image>", "<boi>", "<eoi>", "<wrapper>", "<eof>", "<unk>")
PAD, BOS, EOS, IMAGE, BOI, EOI, WRAPPER, EOF = range(8)
PROMPTS = [[BOS, 18, 19, 27, 30, BOI, WRAPPER], [BOS, 22, WRAPPER], [BOS, 19, 40, 41, 19, 22, 23, 38, BOI, WRAPPER]]
EMPTY = [BOS, BOI, WRAPPER]


@cache
def emu3() -> PreTrainedModel:
    """Pictures of 4×3 codes in 8×6 pixels."""
    text = dict(
        vocab_size=140,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    vq = dict(
        codebook_size=len(CODES),
        embed_dim=8,
        latent_channels=8,
        base_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        attn_resolutions=[],
        hidden_size=32,
        num_attention_heads=1,
        temporal_downsample_factor=1,
    )
    names = {"<image>": IMAGE, "<|extra_200|>": ROW_END}
    names |= {f"<|visual token {number:06d}|>": model_id for number, model_id in enumerate(CODES)}
    return loud(hub.Emu3ForConditionalGeneration(hub.Emu3Config(text_config=text, vq_config=vq, vocabulary_map=names)))


def emu3_processor() -> ProcessorMixin:
    """Words are letters; pictures have values from -1 to 1."""
    text = letters(
        MARKS,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        image_token="<image>",
        boi_token="<boi>",
        eoi_token="<eoi>",
        image_wrapper_token="<wrapper>",
        eof_token="<eof>",
    )
    half = [0.5, 0.5, 0.5]
    processor = hub.Emu3Processor(hub.Emu3ImageProcessor(image_mean=half, image_std=half), text)
    processor.ratio, processor.image_area = f"{WIDTH}:{HEIGHT}", WIDTH * HEIGHT * 64
    return processor


def save_emu3(folder: Path) -> Path:
    """A folder as `save_pretrained` of transformers makes it."""
    emu3().save_pretrained(folder)
    emu3_processor().save_pretrained(folder)
    return folder
