"""Where a number comes from: without this it is not written down."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from mmspec import __version__


def processor() -> str:
    """The CPU's own name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the checkout that mmspec runs from, marked if its tracked files differ from it; "" outside a
    checkout.
    """
    folder = Path(__file__).resolve().parents[1]
    try:
        top = subprocess.run(
            ["git", "rev-parse", "--show-toplevel"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        if Path(top).resolve() != folder:
            return ""
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if dirty else "")


def versions() -> dict[str, str]:
    """Versions of mmspec and of what it computes with."""
    return {
        "mmspec": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "diffusers")},
    }


def provenance(device: str) -> dict:
    """Commit, versions, processor, threads and device."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()
    return {"commit": commit(), **versions(), "device": device, "processor": name, "threads": torch.get_num_threads()}
