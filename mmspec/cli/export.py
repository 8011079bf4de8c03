"""`mmspec export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mmspec.cli.common import loading, quiet_libraries


@dataclass(kw_only=True)
class Export:
    """Write a trained drafter in a format that other engines read, such as vLLM.

    What the format cannot carry is said.

    Example: mmspec export path/to/eagle3 --model Qwen/Qwen3-0.6B --format speculators --out given
    """

    drafter: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DRAFTER")]
    """A drafter of the model by name, a folder, or a hub id; in mmspec's layout or another public one."""
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")]
    """The target that it drafts for: a bundled name, a folder, or a hub id."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """A folder that is not there yet."""
    format: Annotated[str | None, tyro.conf.arg(metavar="FORMAT", help_behavior_hint="")] = None
    """speculators (EAGLE-3, P-EAGLE, DFlash, DSpark), eagle (MSD, EAGLE) or medusa; that of its kind if left out."""
    verifier: Annotated[str | None, tyro.conf.arg(metavar="HUB_ID", help_behavior_hint="")] = None
    """By which name others fetch the target; MODEL if left out."""

    def run(self) -> int:
        from mmspec import zoo
        from mmspec.drafters.table import check_name

        folder = zoo.resolve(self.model, allow_transformers=True)
        check_name(self.drafter, folder)
        with loading(self.model, quiet=False):
            from mmspec.drafters.export import FORMATS, check_folder, check_format, export, verifier_of
            from mmspec.drafters.registry import find
            from mmspec.pipelines import pipeline, task_of

            quiet_libraries()
            stored = find(self.drafter, folder)
            form = check_format(stored, self.format)
            check_folder(self.out)
            target = pipeline(task_of(folder), folder, device="cpu").target
            release = export(stored, target, verifier_of(target, self.verifier or self.model), self.out)
        print(f"{self.out} holds {stored.cls.name} in the format {form}, which {FORMATS[form]} read")
        if not self.verifier and not zoo.HUB_ID.fullmatch(self.model):
            print(f"its target is called {self.model} there: --verifier HUB_ID says how others fetch it")
        for phrase in release.lost:
            print(f"not carried: {phrase}")
        return 0
