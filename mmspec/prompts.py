"""Files with prompts of one's own."""

import hashlib
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from mmspec.errors import MmspecError, short
from mmspec.files import cache_folder, read_text, write_atomically


def read_prompts(file: Path) -> tuple[dict, ...]:
    """The prompts in a file, one a line: text, or JSON with the keys of a model's `prompts.jsonl`; `-` is standard
    input.

    Each row has its `prompt` and may have one picture (`image`) or several (`images`), whose paths are relative to the
    file and are returned absolute. Instead of a prompt it may have a chat, `messages` with role and content, whose last
    message is the prompt, or the `answer` if it is the assistant's. Other keys, such as `voice` and `before`, are
    handed on. A folder is one that the library datasets saved, with the same columns. Raises MmspecError, which names
    the line, for anything else and for pictures that are not there.
    """
    if file.is_dir():
        rows = tuple(_read_dataset(file))
        if not rows:
            raise MmspecError(f"{file} is a dataset without rows")
        return rows
    lines = [(number, line.strip()) for number, line in enumerate(read_text(file).split("\n"), 1)]
    rows = tuple(_read_line(line, file, f"line {number} of {file}") for number, line in lines if line)
    if not rows:
        raise MmspecError(f'{file} has no prompts: write one a line, as text or {{"prompt": ...}}')
    return rows


def pictures_of(row: dict) -> list[str]:
    """The paths of a line's pictures."""
    return [row["image"]] if row.get("image") else row.get("images") or []


def _read_line(line: str, file: Path, where: str) -> dict:
    try:
        row = json.loads(line) if line.startswith("{") else {"prompt": line}
    except ValueError as error:
        raise MmspecError(f'{where} is no JSON ({error}): write {{"prompt": ...}}, or text') from None
    return _check_row(row, file.parent, where)


def _check_row(row: dict, folder: Path, where: str) -> dict:
    if "messages" in row and "prompt" not in row:
        row = _read_chat(row, where)
    if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise MmspecError(f'{where} has no prompt: write {{"prompt": ...}}, or text')
    if row.get("image") and row.get("images"):
        raise MmspecError(f"{where} has both image and images: give one of them")
    several = row.get("images") or []
    images = [row["image"]] if row.get("image") else several
    if not isinstance(several, list) or not all(isinstance(image, str) for image in images):
        raise MmspecError(f"{where}: image is the path of a picture, and images a list of paths")
    paths = [str((folder / image).absolute()) for image in images]
    for path in paths:
        if not Path(path).is_file():
            raise MmspecError(f"{where}: there is no picture {path}; paths are relative to the file of prompts")
    if row.get("image"):
        return row | {"image": paths[0]}
    return row | ({"images": paths} if paths else {})


def _read_chat(row: dict, where: str) -> dict:
    """A row whose chat ends with a question; an answer at its end becomes the row's."""
    messages = row["messages"]
    fits = isinstance(messages, list) and all(
        isinstance(message, dict) and isinstance(message.get("content"), str) and message.get("role")
        for message in messages
    )
    if not fits or not messages:
        raise MmspecError(
            f'{where}: messages is a list such as [{{"role": "user", "content": "Hello"}}], with texts as contents; '
            "pictures are given by image or images"
        )
    if messages[-1]["role"] == "assistant":
        row = {"answer": messages[-1]["content"]} | row
        messages = messages[:-1]
    if not messages or messages[-1]["role"] != "user":
        raise MmspecError(f"{where}: the chat asks nothing: its last message, or that before the answer, is the user's")
    return row | {"messages": messages, "prompt": messages[-1]["content"]}


def _read_dataset(folder: Path) -> Iterator[dict]:
    """Rows of a dataset on disk; its pictures are kept in mmspec's cache, by their contents."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise MmspecError(
            f"{folder} is a folder, and a dataset is read by the library datasets: pip install datasets"
        ) from None
    try:
        dataset = datasets.load_from_disk(str(folder))
    except (FileNotFoundError, ValueError, OSError) as error:
        raise MmspecError(
            f"{folder} is no dataset that the library datasets saved ({short(error)}): give a file"
        ) from None
    if isinstance(dataset, datasets.DatasetDict):
        raise MmspecError(
            f"{folder} has the splits {', '.join(dataset)}: give the folder of one, such as {folder}/train"
        )
    for number, row in enumerate(dataset):
        row = {name: value for name, value in row.items() if value is not None}
        if "image" in row:
            row["image"] = _keep_picture(row["image"])
        if "images" in row:
            row["images"] = [_keep_picture(image) for image in row["images"]]
        yield _check_row(row, folder, f"row {number} of {folder}")


def _keep_picture(image: object) -> object:
    """The path of a picture that a dataset holds; a path stays as it is."""
    if isinstance(image, str):
        return image
    written = BytesIO()
    image.save(written, "PNG")  # type: ignore[attr-defined]  # a PIL image
    path = cache_folder() / "pictures" / f"{hashlib.sha256(written.getvalue()).hexdigest()[:16]}.png"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda partial: partial.write_bytes(written.getvalue()))
    return str(path)
