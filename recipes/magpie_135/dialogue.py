"""Chats as token ids: SmolLM2's own form, with pictures; which of the tokens are answers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import LlavaProcessor, PreTrainedTokenizerFast, SiglipImageProcessor

from recipes.magpie_135.scenes import SIZE

# A token of SmolLM2's that ordinary text never has stands for a patch of a picture.
SPARE, IMAGE = "<filename>", "<image>"

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

# Without a picture this is SmolLM2's own template; with one there is no system prompt.
TEMPLATE = (
    "{% set seen = namespace(any=false) %}"
    "{% for m in messages %}{% if m.content is not string %}{% for part in m.content %}"
    "{% if part.type == 'image' %}{% set seen.any = true %}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if loop.first and m.role != 'system' and not seen.any %}"
    "{{ '<|im_start|>system\n" + SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}{{ '<image>\n' }}{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_processor(tokenizer: PreTrainedTokenizerFast, patch: int, folder: Path) -> LlavaProcessor:
    """SmolLM2's tokenizer with its spare token renamed, and pictures of `SIZE` pixels; saved to `folder`."""
    tokenizer.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace(json.dumps(SPARE), json.dumps(IMAGE)))
    text = PreTrainedTokenizerFast.from_pretrained(folder)
    text.chat_template = None
    images = SiglipImageProcessor(size={"height": SIZE, "width": SIZE}, resample=3)
    processor = LlavaProcessor(
        images, text, patch_size=patch, vision_feature_select_strategy="full", chat_template=TEMPLATE, image_token=IMAGE
    )
    processor.save_pretrained(folder)
    return processor


@dataclass(frozen=True, slots=True)
class Encoded:
    """One chat: ids, and which of them are answers (their end token included)."""

    ids: list[int]
    answer: list[bool]


def encode(processor: LlavaProcessor, turns: Sequence[tuple[str, str]], picture: bool, ended: bool = True) -> Encoded:
    """Questions and answers in turn; the first question comes with a picture if there is one. An empty last answer is
    left to the model, and one that was cut off (not `ended`) has no end token."""
    patches = (SIZE // processor.patch_size) ** 2
    ids: list[int] = []
    answer: list[bool] = []

    def add(text: str, answers: bool) -> None:
        new = processor.tokenizer(text, add_special_tokens=False).input_ids
        ids.extend(new)
        answer.extend([answers] * len(new))

    if not picture:
        add(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n", False)
    for number, (question, reply) in enumerate(turns):
        image = IMAGE * patches + "\n" if picture and not number else ""
        add(f"<|im_start|>user\n{image}{question}<|im_end|>\n<|im_start|>assistant\n", False)
        if reply:
            add(f"{reply}<|im_end|>" if ended else reply, True)
            add("\n" if ended else "", False)
    return Encoded(ids, answer)
