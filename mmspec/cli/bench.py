"""`mmspec bench`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mmspec.cli.common import (
    SUITES,
    Count,
    Device,
    File,
    Name,
    Names,
    Real,
    Switch,
    Whole,
    check_model,
    console,
    loading,
    quiet_libraries,
    suite,
    torch_device,
)
from mmspec.errors import MmspecError


@dataclass
class Bench:
    """Measure every drafter beside plain AR and transformers.generate, in one process.

    Example: mmspec bench image --out results --quick
    """

    suite: tyro.conf.Positional[Literal["image", "speech", "vlm"]]
    """What to measure."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("results")
    """Folder for results.json, results.md and results.png."""
    model: Name = None
    """A bundled name, a folder, or a hub id; the task's own bundled model if left out."""
    quick: Switch = False
    """A few entrants, one prompt in bf16, no ablations: some minutes. Other options still hold."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps; auto is a GPU if there is one."""
    dtype: Annotated[list[str] | None, tyro.conf.arg(metavar="DTYPE ...", help_behavior_hint="")] = None
    """bf16 and fp32 if left out."""
    batch: Annotated[list[int], tyro.conf.arg(metavar="N ...")] = field(default_factory=lambda: [1])
    """Rows at once; vlm takes 1 alone."""
    prompts: Whole = None
    """Pictures, sentences or questions of each entrant in each setting; 8 if left out."""
    prompts_file: File = None
    """Lines as in a model's prompts.jsonl ({"prompt": ...}), or plain lines of text; the suite's own if left out."""
    drafters: Names = field(default_factory=list)
    """These alone, beside plain decoding; those of other packages too."""
    temperature: Real = None
    """The suite's own if left out; 0 is greedy."""
    seed: Count = 0
    """Seed of the first prompt; each next one counts up."""

    def run(self) -> int:
        from importlib.util import find_spec

        from mmspec.drafters.table import check_name
        from mmspec.engine.ranges import check_ranges
        from mmspec.pipelines import TASKS
        from mmspec.prompts import read_prompts

        if find_spec("matplotlib") is None:
            raise MmspecError("the benchmark draws a plot and needs matplotlib: pip install 'mmspec[bench]'")
        dtypes = self.dtype or (["bf16"] if self.quick else ["bf16", "fp32"])
        task = SUITES[self.suite]
        model = self.model or TASKS[task][1]
        for name in dtypes:
            folder = check_model(model, task, None, name, self.device)
        for drafter in self.drafters:
            check_name(drafter, folder)
        if self.temperature is not None:
            check_ranges({"temperature": self.temperature})
        lines = read_prompts(self.prompts_file) if self.prompts_file else ()
        count = self.prompts if self.prompts is not None else 1 if self.quick else len(lines) or 8
        if count < 1 or min(self.batch, default=0) < 1:
            raise MmspecError("--prompts and --batch must be 1 or more")
        from mmspec.placement import check_pair, device_of, dtype_of

        device = torch_device(self.device)
        for name in dtypes:
            check_pair(device_of(device), dtype_of(name))
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MmspecError(f"cannot write to {self.out}: {error.strerror}; give a folder") from None
        with loading(model, quiet=False):
            measured = suite(task)
            quiet_libraries()
        choice = measured.Choice(lines, tuple(self.drafters), self.temperature)
        out = measured.run(model, self.out, self.quick, device, dtypes, self.seed, self.batch, count, choice)
        console.print((out / "results.md").read_text(), markup=False, highlight=False, soft_wrap=True)
        return 0
