"""One run of a recipe: what every stage is given."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from mmspec.train.loop import Budget


@dataclass(slots=True)
class Run:
    """A recipe's settings, where checkpoints lie, and the model folder that it fills."""

    recipe: dict
    work: Path
    out: Path
    device: str | None

    def file(self, name: str, *origin: object) -> Path:
        """Where a result that was made from `origin` lies: other settings, or another order of them (that of voices
        counts), another file.
        """
        digest = hashlib.sha256(json.dumps(origin).encode()).hexdigest()
        return self.work / f"{name}-{digest[:10]}.pt"

    def budget(self, stage: dict) -> Budget:
        return Budget(**stage["budget"])
