"""The words that a model was trained on, where its folder says so."""

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mmspec import zoo
from mmspec.errors import MmspecError


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Groups of names, such as subjects and styles, and the other words of prompts.

    The folder's `vocabulary.json` is an object: `prompt` shows the form of a prompt, `words` are those between the
    names, and every other list is a group of names.
    """

    prompt: str
    words: list[str]
    groups: dict[str, list[str]]

    @classmethod
    def of(cls, folder: Path | None) -> "Vocabulary | None":
        """The vocabulary of a model folder, None if it has none. Raises MmspecError for a damaged one."""
        path = folder / zoo.VOCABULARY if folder else None
        if path is None or not path.is_file():
            return None
        try:
            lists = json.loads(path.read_text("utf-8"))
            prompt, words = lists.pop("prompt", ""), lists.pop("words", [])
            return cls(str(prompt), [*map(str, words)], {str(key): [*map(str, value)] for key, value in lists.items()})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise MmspecError(f"{path} cannot be read ({error}): restore it from the model's source") from None

    @property
    def known(self) -> set[str]:
        """Every word of the names and between them."""
        names = [name for group in self.groups.values() for name in group]
        return {word for text in (*names, *self.words) for word in split(text)}

    def unknown_words(self, prompts: Iterable[str]) -> dict[str, list[str]]:
        """The words of some prompts that the model was not trained on, each with the known ones that look like it."""
        known = self.known
        unknown = dict.fromkeys(word for prompt in prompts for word in split(prompt) if word not in known)
        return {word: difflib.get_close_matches(word, sorted(known), n=2, cutoff=0.7) for word in unknown}

    def lines(self) -> list[str]:
        """All of it, to be read: the form of a prompt, and a line for each group."""
        form = [f"prompts: {self.prompt}"] if self.prompt else []
        return form + [f"{group} ({len(names)}): {', '.join(names)}" for group, names in self.groups.items()]


def split(text: str) -> list[str]:
    """The words of a text in lower case."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())


def warning(unknown: dict[str, list[str]]) -> str:
    """What to tell of words that a model was not trained on."""
    shown = ", ".join(
        f"{word!r}" + (f" (did you mean {' or '.join(map(repr, similar))}?)" if similar else "")
        for word, similar in unknown.items()
    )
    return f"the model was not trained on {shown}: it draws something else there (mmspec image --list lists its words)"
