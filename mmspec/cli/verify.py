"""`mmspec verify`."""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from mmspec.cli.common import console, quiet_libraries, suite, torch_device
from mmspec.errors import MmspecError


@dataclass
class Verify:
    """Does every drafter give the same tokens as plain decoding? Exit code 1 if any float64 row differs.

    Example: mmspec verify emoji-64 --prompts 4 --dtype fp64 --temperature 1 --guidance 2
    """

    model: tyro.conf.Positional[str] = "emoji-64"
    """A bundled name, a folder, or a hub id; pictures, speech or answers."""
    prompts: int = 10
    """How many of the model's own prompts, spread evenly over its list."""
    seed: int = 0
    """Seed of the first prompt; each next one counts up."""
    dtype: list[str] = field(default_factory=lambda: ["fp64", "fp32", "bf16"])
    temperature: list[float] = field(default_factory=lambda: [0.0, 0.7, 1.0])
    guidance: list[float] | None = None
    """1 and 2 for pictures if left out; speech and answers have none."""
    repetition_penalty: list[float] = field(default_factory=lambda: [1.0])
    batch: list[int] = field(default_factory=lambda: [1, 4])
    drafters: list[str] = field(default_factory=list)
    """All that the model has weights for, if left out."""
    tokens: int | None = None
    """Compare this many tokens; the whole picture, sentence or answer if left out."""
    device: str = "auto"
    json: Path | None = None
    """Also write the findings there."""

    def run(self) -> int:
        from torch import float64

        from mmspec import files, zoo
        from mmspec.drafters import usable
        from mmspec.placement import dtype_of
        from mmspec.verify import verify

        quiet_libraries()
        folder = zoo.resolve(self.model, bare=True)
        for name in ("dtype", "temperature", "guidance", "repetition_penalty", "batch"):
            if getattr(self, name) == []:
                raise MmspecError(f"--{name} has no values: give at least one")
        if self.prompts < 1 or min(self.batch) < 1 or (self.tokens is not None and self.tokens < 1):
            raise MmspecError("--prompts, --batch and --tokens must be 1 or more")
        if self.json:
            files.check_output(self.json, {".json": "JSON"})
        found = [name for name in usable(folder) if name != "none"]
        texts = sample_prompts(folder, self.prompts)
        heads = (
            "dtype",
            "T",
            "guidance",
            "penalty",
            "batch",
            "drafter",
            "equal",
            "first parting: position, margin of AR's token",
        )
        table = Table(*heads, title=f"{self.model}, {len(texts)} prompts")
        rows = []
        laws = (self.dtype, self.temperature, self.guidance, self.repetition_penalty, self.batch)
        search = verify(folder, *laws, self.drafters or found, texts, self.seed, torch_device(self.device), self.tokens)
        with console.status("verifying"):
            for finding in search:
                rows.append(finding)
                where = "; ".join(
                    f"{p.position}, {p.margin:.1e}" for p in sorted(finding.partings, key=lambda p: -p.margin)[:3]
                )
                law = (
                    f"{value:g}"
                    for value in (finding.temperature, finding.guidance, finding.repetition_penalty, finding.batch)
                )
                line = (finding.dtype, *law, finding.drafter, f"{finding.equal}/{finding.rows}", where)
                table.add_row(*line)
                console.print(*line, soft_wrap=True)
                if self.json:
                    text = json.dumps([row.as_dict() for row in rows], indent=1) + "\n"
                    files.write_atomically(self.json, partial(Path.write_text, data=text))
        Console(width=140).print(table)
        return int(any(row.partings for row in rows if dtype_of(row.dtype) == float64))


def sample_prompts(folder: Path, count: int) -> list[dict]:
    """Lines spread evenly over the model's own list; the benchmark's where it has none."""
    from mmspec import zoo
    from mmspec.pipelines import task_of

    task = task_of(folder)
    if task == "image-text-to-text":
        known = suite(task).questions(folder)
    elif (folder / zoo.PROMPTS).exists():
        known = zoo.prompts(folder)
    else:
        known = [{"prompt": text} for text in suite(task).PROMPTS]
    return [known[i * len(known) // count % len(known)] for i in range(count)]
