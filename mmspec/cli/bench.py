"""`mmspec bench`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from mmspec.cli.common import SUITES, console, quiet_libraries, suite, torch_device
from mmspec.errors import MmspecError


@dataclass
class Bench:
    """Measure every drafter beside plain AR and transformers.generate, in one process.

    Example: mmspec bench image --out results --quick
    """

    suite: tyro.conf.Positional[Literal["image", "speech", "vlm"]]
    """What to measure."""
    out: Path = Path("results")
    """Folder for results.json, results.md and results.png."""
    model: str | None = None
    """A bundled name, a folder, or a hub id; the task's own bundled model if left out."""
    quick: bool = False
    """A few entrants, one prompt in bf16, no ablations: some minutes. Other options still hold."""
    device: str = "auto"
    dtype: list[str] | None = None
    """bf16 and fp32 if left out."""
    batch: list[int] = field(default_factory=lambda: [1])
    """Rows at once; vlm takes 1 alone."""
    prompts: int | None = None
    """Pictures, sentences or questions of each entrant in each setting; 8 if left out."""
    seed: int = 0

    def run(self) -> int:
        from importlib.util import find_spec

        from mmspec.pipelines import TASKS
        from mmspec.placement import check_pair, device_of, dtype_of
        from mmspec.zoo import resolve

        if find_spec("matplotlib") is None:
            raise MmspecError("the benchmark draws a plot and needs matplotlib: pip install 'mmspec[bench]'")
        quiet_libraries()
        device = torch_device(self.device)
        dtypes = self.dtype or (["bf16"] if self.quick else ["bf16", "fp32"])
        for name in dtypes:
            check_pair(device_of(device), dtype_of(name))
        count = self.prompts if self.prompts is not None else 1 if self.quick else 8
        if count < 1 or min(self.batch, default=0) < 1:
            raise MmspecError("--prompts and --batch must be 1 or more")
        model = self.model or TASKS[SUITES[self.suite]][1]
        resolve(model, allow_transformers=True)
        measured = suite(SUITES[self.suite])
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MmspecError(f"cannot write to {self.out}: {error.strerror}; give a folder") from None
        out = measured.run(model, self.out, self.quick, device, dtypes, self.seed, self.batch, count)
        console.print((out / "results.md").read_text(), markup=False, highlight=False, soft_wrap=True)
        return 0
