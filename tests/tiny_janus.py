"""A random Janus that is small and loud, and its processor."""

from functools import cache
from pathlib import Path

import torch
import transformers as hub
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

CODES, SIDE = 40, 4
LETTERS = "abcdefghijklmnopqrstuvwxyz .,!?:*0123456789"
MARKS = ("<pad>", "<s>", "</s>", "<image>", "<boi>", "<eoi>", "<unk>")
PAD, BOS, IMAGE, BOI = 0, 1, 3, 4
# Ids of prompts, in the range of the codes and beyond it.
PROMPTS = [[BOS, 8, 9, 7, 30, BOI], [BOS, 12, BOI], [BOS, 9, 60, 61, 9, 22, 23, 88, BOI]]
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} assistant:{% endif %}"
)


def loud(model: PreTrainedModel) -> PreTrainedModel:
    """Random weights that are large enough for logits to depend on everything, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=1.0 if "embed" in name else 1.6 / weight[0].numel() ** 0.5)
            elif name.endswith("bias"):
                torch.nn.init.normal_(weight, std=0.3)
    return model.double().eval()


@cache
def janus() -> PreTrainedModel:
    """Codes of 4×4 in pictures of 8×8 pixels."""
    text = dict(
        model_type="llama",
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    eye = dict(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        projection_dim=32,
        num_image_tokens=SIDE**2,
        mlp_ratio=2.0,
    )
    vq = dict(
        embed_dim=8,
        num_embeddings=CODES,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        projection_dim=32,
        image_token_embed_dim=32,
        num_patches=SIDE,
    )
    config = hub.JanusConfig(vision_config=eye, text_config=text, vq_config=vq, image_token_id=IMAGE)
    model = loud(hub.JanusForConditionalGeneration(config))
    marks = model.generation_config
    marks.generation_kwargs, marks.bos_token_id, marks.pad_token_id = {"boi_token_id": BOI}, BOS, PAD
    return model


def letters(marks: tuple[str, ...], later: tuple[str, ...] = (), **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are single characters, after its marks and before the `later` ones."""
    words = {token: number for number, token in enumerate([*marks, *LETTERS, *later])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    extra = {name: special.pop(name) for name in list(special) if not name.startswith(("pad", "bos", "eos", "unk"))}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, extra_special_tokens=extra)


def janus_processor() -> ProcessorMixin:
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
    )
    half = [0.5, 0.5, 0.5]
    pictures = hub.JanusImageProcessor(image_mean=half, image_std=half, size={"height": 16, "width": 16})
    return hub.JanusProcessor(pictures, text, chat_template=TEMPLATE, num_image_tokens=SIDE**2)


def save_janus(folder: Path) -> Path:
    """A folder as `save_pretrained` of transformers makes it."""
    janus().save_pretrained(folder)
    janus_processor().save_pretrained(folder)
    return folder
