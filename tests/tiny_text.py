"""A folder of transformers that chats without pictures: a random Llama and a tokenizer of letters."""

from pathlib import Path

import torch
from tiny import llama
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def save_tokenizer(path: Path) -> int:
    """Save the tokenizer, which has a chat template; how many tokens it has."""
    letters = ["<pad>", "<end>", "<user>", "<assistant>", *"abcdefghijklmnopqrstuvwxyzHW .,!?'", "<unk>"]
    words = Tokenizer(models.WordLevel({token: i for i, token in enumerate(letters)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("<[a-z]+>|."), "isolated")
    words.decoder = decoders.Fuse()
    text = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", chat_template=TEMPLATE
    )
    text.save_pretrained(path)
    return len(text)


def save_chat_model(path: Path) -> Path:
    """Save the model and the tokenizer."""
    llama(save_tokenizer(path), torch.float32).save_pretrained(path)
    return path
