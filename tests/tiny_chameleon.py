"""A random Chameleon that is small and loud, and its processor."""

from functools import cache
from pathlib import Path

import transformers as hub
from tiny_janus import letters, loud
from transformers import PreTrainedModel, ProcessorMixin

# Ids of the codes by number, which are not in order.
CODES, SIDE = [100 + number * 7 % 20 for number in range(20)], 4
MARKS = ("<pad>", "<s>", "</s>", "<image>", "<boi>", "<eoi>", "<sep>", "<unk>")
PAD, BOS, EOS, IMAGE, BOI, EOI, SEP = range(7)
PROMPTS = [[BOS, 18, 19, 27, 30, SEP, BOI], [BOS, 22, SEP, BOI], [BOS, 19, 40, 41, 19, 22, 23, 38, SEP, BOI]]


@cache
def chameleon() -> PreTrainedModel:
    """Codes of 4×4."""
    names = {"<image>": IMAGE}
    for number, model_id in enumerate(CODES):
        names["IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in f"{number:02d}") + "Z"] = model_id
    vq = dict(
        embed_dim=8,
        num_embeddings=len(CODES),
        latent_channels=8,
        resolution=2 * SIDE,
        base_channels=32,
        channel_multiplier=[1, 2],
        num_res_blocks=1,
        attn_resolutions=[],
    )
    config = hub.ChameleonConfig(
        vocab_size=130,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocabulary_map=names,
        vq_config=vq,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return loud(hub.ChameleonForConditionalGeneration(config))


def chameleon_processor() -> ProcessorMixin:
    """Words are letters."""
    text = letters(
        MARKS,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        image_token="<image>",
        boi_token="<boi>",
        eoi_token="<eoi>",
        sep_token="<sep>",
    )
    return hub.ChameleonProcessor(hub.ChameleonImageProcessor(), text, image_seq_length=SIDE**2)


def save_chameleon(folder: Path) -> Path:
    """A folder as `save_pretrained` of transformers makes it."""
    chameleon().save_pretrained(folder)
    chameleon_processor().save_pretrained(folder)
    return folder
