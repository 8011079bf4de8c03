"""`mmspec train`."""

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from mmspec.cli.common import torch_device
from mmspec.errors import MmspecError


@dataclass
class Train:
    """Rebuild a model folder from its recipe: data, tokenizer, target, drafters. An interrupted run resumes.

    Example: mmspec train models/emoji-64/recipe.yaml --work training --out rebuilt
    """

    recipe: tyro.conf.Positional[Path]
    """A recipe.yaml, or a model folder that holds one."""
    work: Path = Path("training")
    """Folder for data and checkpoints."""
    out: Path | None = None
    """Model folder to fill; WORK/model if left out."""
    stages: list[str] = field(default_factory=list)
    """Only these, e.g. tokenizer, target, drafters, drafters.hawk."""
    device: str = "auto"

    def run(self) -> int:
        try:
            from mmspec.train.recipe import train

            train(self.recipe, self.work, self.out, torch_device(self.device), self.stages)
        except ModuleNotFoundError as error:
            raise MmspecError(f"training needs {error.name}: pip install 'mmspec[train]'") from None
        return 0
