"""What a model has learnt to draw, by the prompts in its folder."""

import re
from pathlib import Path

from mmspec import zoo


def known_names(folder: Path | None) -> list[str]:
    """The different things that the prompts of a model folder name, without their styles, sorted by the last word.

    Empty for a model whose folder lists no prompts.
    """
    if folder is None or not (folder / zoo.PROMPTS).is_file():
        return []
    names = {row["prompt"].partition(",")[0].strip() for row in zoo.prompts(folder)}
    return sorted(names, key=lambda name: name.split()[-1].lower())


def unknown_notice(prompt: str, names: list[str]) -> str:
    """A warning that a prompt begins with none of the names, as Markdown; empty if it does, or if there are none."""
    words = " ".join(prompt.lower().split())
    if not names or not words or any(re.match(re.escape(name.lower()) + r"\b", words) for name in names):
        return ""
    return (
        f"This model learnt {len(names)} names, and the prompt begins with none of them: "
        "expect a picture of something else. The list is under *What this model can draw*."
    )
