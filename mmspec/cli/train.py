"""`mmspec train`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from mmspec.cli.common import Device, File, Names, torch_device
from mmspec.errors import MmspecError


@dataclass
class Train:
    """Rebuild a model folder from its recipe; an interrupted run resumes.

    Example: mmspec train models/emoji-64/recipe.yaml --work training --out rebuilt
    """

    recipe: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RECIPE")]
    """A recipe.yaml, or a model folder that holds one."""
    work: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("training")
    """Folder for data and checkpoints."""
    out: File = None
    """Model folder to fill; WORK/model if left out."""
    stages: Names = field(default_factory=list)
    """Only these, e.g. tokenizer, target, drafters, drafters.hawk."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps; auto is a GPU if there is one."""

    def run(self) -> int:
        try:
            from mmspec.train.recipe import train

            train(self.recipe, self.work, self.out, torch_device(self.device), self.stages)
        except ModuleNotFoundError as error:
            raise MmspecError(f"training needs {error.name}: pip install 'mmspec[train]'") from None
        return 0
