"""`mmspec verify`."""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table

from mmspec.cli.common import (
    Count,
    Device,
    File,
    Names,
    Reals,
    Switch,
    Whole,
    console,
    loading,
    quiet_libraries,
    suite,
    torch_device,
)
from mmspec.errors import MmspecError

if TYPE_CHECKING:
    from mmspec.verify import Finding


@dataclass
class Verify:
    """Compare every drafter's tokens with those of plain decoding.

    Greedy plain decoding is compared with transformers.generate as well.

    Exit code 1 if any float64 row differs.

    Example: mmspec verify emoji-64 --prompts 4 --dtype fp64 --temperature 1 --guidance 2
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[MODEL]")] = "emoji-64"
    """A bundled name, a folder, or a hub id; pictures, speech or answers."""
    prompts: Count = 10
    """How many of the model's own prompts, spread evenly over its list; of the benchmark's if it has none."""
    seed: Count = 0
    """Seed of the first prompt; each next one counts up."""
    dtype: Annotated[list[str] | None, tyro.conf.arg(metavar="DTYPE ...", help_behavior_hint="")] = None
    """bf16, fp32, fp64 or fp16; if left out fp64 fp32 bf16, and bf16 alone with --deterministic."""
    temperature: Annotated[list[float], tyro.conf.arg(metavar="X ...")] = field(default_factory=lambda: [0.0, 0.7, 1.0])
    """0 is greedy, and compared with transformers.generate too."""
    guidance: Reals = None
    """1 and 2 for pictures if left out; speech and answers have none."""
    repetition_penalty: Annotated[list[float], tyro.conf.arg(metavar="X ...")] = field(default_factory=lambda: [1.0])
    """1 is none."""
    batch: Annotated[list[int], tyro.conf.arg(metavar="N ...")] = field(default_factory=lambda: [1, 4])
    """How many rows at once, at most as many as there are prompts."""
    drafters: Names = field(default_factory=list)
    """All that the model has weights for, if left out."""
    tokens: Whole = None
    """Compare this many tokens; the whole picture, sentence or answer if left out."""
    deterministic: Switch = False
    """Draft chains, so that passes of every width agree bit for bit in bf16 on a CPU."""
    compile: Switch = False
    """Compiled passes, of drafters and of plain decoding."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps; auto is a GPU if there is one."""
    json: File = None
    """Also write the findings there."""

    def run(self) -> int:
        from mmspec import files, zoo
        from mmspec.drafters.table import check_name, usable
        from mmspec.placement import check_names, dtype_of

        folder = zoo.resolve(self.model, allow_transformers=True)
        dtypes = (["bf16"] if self.deterministic else ["fp64", "fp32", "bf16"]) if self.dtype is None else self.dtype
        for name in ("dtype", "temperature", "guidance", "repetition_penalty", "batch"):
            if getattr(self, name) == []:
                raise MmspecError(f"--{name} has no values: give at least one")
        if self.prompts < 1 or min(self.batch) < 1 or (self.tokens is not None and self.tokens < 1):
            raise MmspecError("--prompts, --batch and --tokens must be 1 or more")
        if self.json:
            files.check_output(self.json, {".json": "JSON"})
        for dtype in dtypes:
            check_names(dtype, self.device)
        for drafter in self.drafters:
            check_name(drafter, folder)
        with loading(self.model, quiet=False):
            from torch import float64

            from mmspec.verify import verify

            quiet_libraries()
        names = self.drafters or [name for name in usable(folder) if name != "none"]
        prompts = sample_prompts(folder, self.prompts)
        columns = ("dtype", "T", "guidance", "penalty", "batch", "drafter", "equal", "generate")
        partings = "first parting: position, margin of AR's token"
        table = Table(*columns, partings, title=f"{self.model}, {len(prompts)} prompt{'s' if len(prompts) > 1 else ''}")
        findings = []
        batches = list(dict.fromkeys(min(rows, self.prompts) for rows in self.batch))
        settings = (dtypes, self.temperature, self.guidance, self.repetition_penalty, batches)
        device = torch_device(self.device)
        search = verify(
            folder, *settings, names, prompts, self.seed, device, self.tokens, self.deterministic, self.compile
        )
        with console.status("verifying"):
            for finding in search:
                findings.append(finding)
                cells = table_row(finding)
                table.add_row(*cells)
                if console.is_terminal:  # elsewhere the table comes once, at the end
                    console.print(*cells, soft_wrap=True)
                if self.json:
                    text = json.dumps([finding.as_dict() for finding in findings], indent=1) + "\n"
                    files.write_atomically(self.json, partial(Path.write_text, data=text))
        Console(width=140).print(table)
        skipped = dict.fromkeys(finding.generate_skipped for finding in findings if finding.generate_skipped)
        if skipped:
            reasons = ", ".join(skipped)
            console.print(f"rows with n/a were not compared with transformers.generate: {reasons}", soft_wrap=True)
        wide = [finding for finding in findings if dtype_of(finding.dtype) == float64]
        return int(any(finding.partings or finding.generate_partings for finding in wide))


def table_row(finding: "Finding") -> tuple[str, ...]:
    """A finding as a line of the table."""
    partings = sorted([*finding.partings, *finding.generate_partings], key=lambda parting: -parting.margin)[:3]
    numbers = (finding.temperature, finding.guidance, finding.repetition_penalty, finding.batch)
    return (
        finding.dtype,
        *(f"{number:g}" for number in numbers),
        finding.drafter,
        f"{finding.equal}/{finding.rows}",
        "n/a" if finding.generate_skipped else f"{finding.generate_equal}/{finding.generate_rows}",
        "; ".join(f"{parting.position}, {parting.margin:.1e}" for parting in partings),
    )


def sample_prompts(folder: Path, count: int) -> list[dict]:
    """Lines spread evenly over the model's own list; the benchmark's where it has none."""
    from mmspec import zoo
    from mmspec.pipelines import reads_pictures, task_of
    from mmspec.pipelines.families import example_prompts

    task = task_of(folder)
    if task == "image-text-to-text":
        lines = suite(task).questions(folder)
        if not reads_pictures(folder):
            lines = [{"prompt": line["prompt"]} for line in lines]
    elif (folder / zoo.PROMPTS).exists():
        lines = zoo.prompts(folder)
    else:
        lines = [{"prompt": text} for text in example_prompts(folder) or suite(task).PROMPTS]
    return [lines[i * len(lines) // count % len(lines)] for i in range(count)]
