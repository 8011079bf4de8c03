"""Folders of vision-language models as people have them: random weights, and the family's own processor."""

from pathlib import Path

import transformers as hub
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ProcessorMixin
from vlm_families import model
from vlm_inputs import END, FIRST, IMAGE, ROW, START, VIDEO, WORDS

TEMPLATE = (
    "{% for m in messages %}{{ '<bos>' + m.role[:1] + ':' }}{% for part in m.content %}{% if part.type == 'image' %}"
    "PICTURE{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<bos>a:{% endif %}"
)
# Names of the tokens with a meaning, by their ids, and how the template writes a picture.
NAMES: dict[str, tuple[dict[int, str], str]] = {
    "qwen3_vl": (
        {IMAGE: "<|image_pad|>", START: "<|vision_start|>", END: "<|vision_end|>", VIDEO: "<|video_pad|>"},
        "<|vision_start|><|image_pad|><|vision_end|>",
    ),
    "smolvlm": ({IMAGE: "<image>", START: "<fake_token_around_image>", END: "<global-img>"}, "<image>"),
    "gemma3": ({IMAGE: "<image_soft_token>", START: "<start_of_image>", END: "<end_of_image>"}, "<start_of_image>"),
}
# Attributes by which the processor finds them.
ATTRIBUTES = {"gemma3": {"image_token": IMAGE, "boi_token": START, "eoi_token": END}}


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer of letters, whose tokens with a meaning have the ids of the table of models."""
    names = {0: "<pad>", 1: "<bos>", FIRST - 1: "<unk>", FIRST: "<first>", VIDEO: "<video>", ROW: "<row>"}
    names |= NAMES[family][0]
    letters = iter("abcdefghijklmnopqrstuvwxyzHWIT .,!?':\n0123456789-_/()")
    vocabulary = {names.get(i) or next(letters, f"<spare{i}>"): i for i in range(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    words.decoder = decoders.Fuse()
    words.add_special_tokens(list(names.values()))
    special = {name: names[number] for name, number in ATTRIBUTES.get(family, {}).items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<bos>",
        unk_token="<unk>",
        extra_special_tokens=special,
    )


def processor(family: str) -> ProcessorMixin:
    """The family's processor for pictures of its tiny models."""
    text, template = tokenizer(family), TEMPLATE.replace("PICTURE", NAMES[family][1])
    size = {"height": 16, "width": 16}
    if family == "qwen3_vl":
        eye = hub.Qwen2VLImageProcessor(patch_size=4, min_pixels=64, max_pixels=512)
        return hub.Qwen3VLProcessor(eye, text, hub.Qwen3VLVideoProcessor(), chat_template=template)
    if family == "smolvlm":
        eye = hub.SmolVLMImageProcessor(
            do_image_splitting=False, size={"longest_edge": 16}, max_image_size={"longest_edge": 16}
        )
        movies = hub.SmolVLMVideoProcessor(size={"longest_edge": 16})
        return hub.SmolVLMProcessor(eye, text, movies, image_seq_len=4, chat_template=template)
    return hub.Gemma3Processor(hub.Gemma3ImageProcessor(size=size), text, template, image_seq_length=4)


def save_reader(family: str, folder: Path) -> Path:
    """Save a model and its processor."""
    model(family).save_pretrained(folder)
    processor(family).save_pretrained(folder)
    return folder
