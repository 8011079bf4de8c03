"""What the pipelines share in reading and writing model folders."""

import shutil
from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mmspec.errors import MmspecError

HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
COMPANIONS = ("README.md", "recipe.yaml", "prompts.jsonl")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The text tokenizer of a model folder."""
    path = folder / "tokenizer"
    if not (path / "tokenizer.json").is_file():
        raise MmspecError(f"{path / 'tokenizer.json'} is missing: restore it from the model's source")
    try:
        return PreTrainedTokenizerFast.from_pretrained(path)
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise MmspecError(f"{path / 'tokenizer.json'} does not load ({error}): restore it from the model's source") from None


def copy_companions(folder: Path | None, goal: Path) -> None:
    """What a model's folder holds beside its components: drafters, card, recipe, prompts."""
    if folder is None or folder.resolve() == goal.resolve():
        return
    for name in COMPANIONS:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, goal / name)
    if (folder / "drafters").is_dir():
        shutil.copytree(folder / "drafters", goal / "drafters", dirs_exist_ok=True)
