"""The tokenizer of a language model, in the place of a processor."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mmspec.errors import MmspecError


class TextProcessor:
    """Reads chats of text alone. Raises MmspecError for a tokenizer without a chat template, and for pictures."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: Path | str = "the tokenizer"):
        if not tokenizer.chat_template:
            raise MmspecError(
                f"{source} has no chat template, so it does not chat: mmspec.generate continues a text with any "
                "language model (docs/adding-a-target.md)"
            )
        self.tokenizer = tokenizer

    @property
    def chat_template(self) -> str:
        return self.tokenizer.chat_template

    def apply_chat_template(self, chat: list[dict], **options: Any) -> Any:
        """What the tokenizer makes of a chat, the parts of each message joined."""
        parts = [part for message in chat for part in message["content"]]
        if any(part["type"] != "text" for part in parts):
            raise MmspecError("this language model reads no pictures: leave them out, or use a vision-language model")
        messages = [
            {"role": message["role"], "content": "".join(part["text"] for part in message["content"])}
            for message in chat
        ]
        return self.tokenizer.apply_chat_template(messages, **options)

    def save_pretrained(self, folder: Path | str) -> None:
        """Save the tokenizer."""
        self.tokenizer.save_pretrained(folder)
