"""`mmspec info`."""

import json
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass
class Info:
    """Models, drafters, acceptance rules, devices and versions.

    Example: mmspec info --json
    """

    json: bool = False
    """Machine-readable."""

    def run(self) -> int:
        import torch

        from mmspec import zoo
        from mmspec.drafters import names
        from mmspec.engine.accept import RULES, acceptance
        from mmspec.versions import versions

        facts = {
            **versions(),
            "devices": [
                "cpu",
                *(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())),
            ],
            "threads": torch.get_num_threads(),
            "models": {
                entry.name: {"drafters": entry.drafters, "megabytes": round(entry.bytes / 1e6, 1)}
                for entry in zoo.bundled().values()
            },
            "drafters": list(names()),
            "acceptance": {name: "lossless" if acceptance(name).lossless else "lossy" for name in RULES},
        }
        if self.json:
            print(json.dumps(facts, indent=1))
            return 0
        table = Table(show_header=False)
        for key, value in facts.items():
            text = (
                "\n".join(f"{k}: {v}" for k, v in value.items())
                if isinstance(value, dict)
                else ", ".join(map(str, value))
                if isinstance(value, list)
                else str(value)
            )
            table.add_row(key, text)
        Console().print(table)
        return 0
