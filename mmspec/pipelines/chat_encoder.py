"""Chats as token ids and pixels: what people write in them is text, and only the template writes control tokens."""

import copy
import json
import re
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer, normalizers
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from mmspec.errors import MmspecError
from mmspec.pipelines.chats import Chat

# Code points that Unicode keeps out of text that is exchanged; one that a chat does not hold separates the characters
# of control tokens in it.
NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]

# What processors of older transformers write for pictures until all of them have their tokens.
INTERIM = ("<|placeholder|>", "<placeholder>")


def control_tokens(processor: ProcessorMixin) -> set[str]:
    """The strings that a processor reads as more than text: added tokens, special or not, and placeholders of media.

    Tokens for blanks, which some tokenizers add for runs of spaces, and those of one character are text.
    """
    placeholders = (value for name, value in vars(processor).items() if name.endswith("_token"))
    tokens = (*added_tokens(processor.tokenizer), *placeholders, *INTERIM)
    return {token for token in tokens if isinstance(token, str) and len(token.strip()) > 1}


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The strings of more than a character that a tokenizer reads as tokens of their own."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values())
    return {token for token in added if len(token.strip()) > 1}


class ChatEncoder:
    """Encodes chats by a processor's template.

    A chat without control tokens in its texts is encoded by the processor's own `apply_chat_template`. In any other, a
    noncharacter goes into each of them, so that neither tokenizer nor processor matches it, and the tokenizer's
    normalizer removes it before the text is split: what is left are the tokens of ordinary text, merged with its
    surroundings as ever. (transformers' `sanitize_control_tokens` of 5.24 leaves in what two parts of a message have
    together, and does not merge.)
    """

    def __init__(self, processor: ProcessorMixin):
        self.processor, self.tokens = processor, control_tokens(processor)
        longest_first = sorted(self.tokens, key=len, reverse=True)
        # An empty match before each token, since tokens may overlap; templates may change the case of texts.
        pattern = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._tokens = re.compile(f"(?={pattern})", re.IGNORECASE)
        folded = [token.casefold() for token in self.tokens]
        self._beginnings = {token[:length] for token in folded for length in range(1, len(token))}
        self._ends = {token[length:] for token in folded for length in range(1, len(token))}
        self._longest = max(map(len, self.tokens), default=0)
        self._separating: ProcessorMixin | None = None

    def __call__(self, chat: Chat) -> dict:
        """Token ids and pixels of a chat; an answer at its end is gone on with, as transformers' pipeline does."""
        texts = _texts(chat)
        cuts = {text: found for text in texts if (found := self._cuts(text))}
        end = "continue_final_message" if chat[-1]["role"] == "assistant" else "add_generation_prompt"
        options: dict[str, Any] = dict(tokenize=True, return_dict=True, return_tensors="pt") | {end: True}
        if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
            raise MmspecError("the chat holds half a character (a lone surrogate): give text that is valid Unicode")
        if not cuts and not any(self._cuts(self._normalized(text)) for text in texts):
            return dict(self.processor.apply_chat_template(chat, **options))
        innocent = _with_texts(chat, lambda text: "x" if text.strip() else text)
        written = [
            self._normalized(self.processor.apply_chat_template(texts, **options | {"tokenize": False}))
            for texts in (innocent, chat)
        ]
        whole = any(self._tokens.search(form) for text in texts for form in (text, self._normalized(text)))
        if not whole and len({len(self._tokens.findall(text)) for text in written}) == 1:  # only parts of one
            return dict(self.processor.apply_chat_template(chat, **options))
        separator = next((mark for mark in NONCHARACTERS if not any(mark in text for text in texts)), None)
        if separator is None:
            raise MmspecError("the chat holds every noncharacter of Unicode and control tokens: leave one out")
        processor = self._with_separator(separator)
        separated = _with_texts(chat, lambda text: _cut(text, cuts.get(text, []), separator))
        counts = {
            self._count(processor, processor.apply_chat_template(texts, **options | {"tokenize": False}))
            for texts in (innocent, separated)
        }
        if len(counts) > 1:
            raise MmspecError(
                "the model's tokenizer takes a control token in the chat for more than text: leave it out, or write it "
                "otherwise"
            )
        return dict(processor.apply_chat_template(separated, **options))

    def _cuts(self, text: str) -> list[int]:
        """Where a text must be separated so that neither it nor it and its surroundings hold a control token, blanks at
        its ends or not: templates may strip them.
        """
        cuts = {match.start() + 1 for match in self._tokens.finditer(text)}
        core, start = text.strip(), len(text) - len(text.lstrip())
        for length in range(1, min(self._longest, len(core)) + 1):
            if core[-length:].casefold() in self._beginnings:
                cuts.add(start + len(core) - length + 1)
            if core[:length].casefold() in self._ends:
                cuts.add(start)
        return sorted(cuts)

    def _normalized(self, text: str) -> str:
        """The text in which the tokenizer looks for its tokens, if it looks for some after it has normalized."""
        own = getattr(self.processor.tokenizer, "backend_tokenizer", None)
        late = any(token.normalized for token in self.processor.tokenizer.added_tokens_decoder.values())
        return own.normalizer.normalize_str(text) if late and own and own.normalizer else text

    def _with_separator(self, separator: str) -> ProcessorMixin:
        """The processor with a tokenizer of its own, which drops the separator when it normalizes text."""
        own = getattr(self.processor.tokenizer, "backend_tokenizer", None)
        if not isinstance(own, Tokenizer):
            raise MmspecError("the model's tokenizer cannot read a control token in the chat as text: leave it out")
        if self._separating is None:
            described = json.loads(own.to_str())
            for token in described["added_tokens"]:
                token["normalized"] = False  # matched in the text as it is given, with the separator in it
            self._separating = copy.copy(self.processor)
            self._separating.tokenizer = copy.copy(self.processor.tokenizer)
            self._separating.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(described))
        dropped = normalizers.Replace(separator, "")
        normalizer = normalizers.Sequence([dropped, own.normalizer] if own.normalizer else [dropped])
        self._separating.tokenizer.backend_tokenizer.normalizer = normalizer
        return self._separating

    def _count(self, processor: ProcessorMixin, rendered: str) -> int:
        """How many control tokens there are in a chat as its template writes it.

        One that stands for characters that the vocabulary lacks comes from any text and is not counted.
        """
        tokenizer = processor.tokenizer
        known = tokenizer.get_added_vocab()
        unknown = getattr(tokenizer.backend_tokenizer.model, "unk_token", tokenizer.unk_token)
        control = {known[token] for token in self.tokens - {unknown} if token in known}
        return sum(token in control for token in tokenizer.encode(rendered, add_special_tokens=False))


def _cut(text: str, cuts: list[int], separator: str) -> str:
    """The text with a separator at each of the cuts."""
    edges = [0, *cuts, len(text)]
    return separator.join(text[start:end] for start, end in zip(edges, edges[1:]))


def _texts(chat: Chat) -> list[str]:
    """The texts of a chat, be they contents or parts of them."""
    texts: list[str] = []
    for message in chat:
        content = message["content"]
        texts += [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
    return texts


def _with_texts(chat: Chat, change: Callable[[str], str]) -> Chat:
    """A chat whose texts are changed, be they contents or parts of them."""

    def changed(content: str | list[dict]) -> str | list[dict]:
        if isinstance(content, str):
            return change(content)
        return [part | {"text": change(part["text"])} if part["type"] == "text" else part for part in content]

    return [message | {"content": changed(message["content"])} for message in chat]
