"""Files with prompts of one's own."""

import json
from pathlib import Path

from mmspec.errors import MmspecError
from mmspec.files import read_text


def read_prompts(file: Path) -> tuple[dict, ...]:
    """The prompts in a file, one a line: text, or JSON with the keys of a model's `prompts.jsonl`; `-` is standard
    input.

    Each row has its `prompt` and may have one picture (`image`) or several (`images`), whose paths are relative to the
    file and are returned absolute. Other keys, such as `voice` and `before`, are handed on. Raises MmspecError, which
    names the line, for anything else and for pictures that are not there.
    """
    lines = [(number, line.strip()) for number, line in enumerate(read_text(file).split("\n"), 1)]
    rows = tuple(_read_line(line, file, f"line {number} of {file}") for number, line in lines if line)
    if not rows:
        raise MmspecError(f'{file} has no prompts: write one a line, as text or {{"prompt": ...}}')
    return rows


def _read_line(line: str, file: Path, where: str) -> dict:
    try:
        row = json.loads(line) if line.startswith("{") else {"prompt": line}
    except ValueError as error:
        raise MmspecError(f'{where} is no JSON ({error}): write {{"prompt": ...}}, or text') from None
    if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise MmspecError(f'{where} has no prompt: write {{"prompt": ...}}, or text')
    if row.get("image") and row.get("images"):
        raise MmspecError(f"{where} has both image and images: give one of them")
    several = row.get("images") or []
    images = [row["image"]] if row.get("image") else several
    if not isinstance(several, list) or not all(isinstance(image, str) for image in images):
        raise MmspecError(f"{where}: image is the path of a picture, and images a list of paths")
    paths = [str((file.parent / image).absolute()) for image in images]
    for path in paths:
        if not Path(path).is_file():
            raise MmspecError(f"{where}: there is no picture {path}; paths are relative to the file of prompts")
    if row.get("image"):
        return row | {"image": paths[0]}
    return row | ({"images": paths} if paths else {})
