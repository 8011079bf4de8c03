"""What `import mmspec` shows: names, types, and no torch before it is needed."""

import subprocess
import sys
from pathlib import Path
from typing import get_overloads

import mmspec
from mmspec.pipelines import TASKS, pipeline

ROOT = Path(__file__).parents[1]


def test_names() -> None:
    """All public names are listed before any of them is used."""
    code = "import sys, mmspec; print(set(mmspec.__all__) <= set(dir(mmspec)), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["True", "False"], done.stderr
    assert all(getattr(mmspec, name) is not None for name in mmspec.__all__)


def test_types() -> None:
    """Type checkers know the package, and which pipeline a task gives."""
    assert (Path(mmspec.__file__).parent / "py.typed").is_file()
    returned = [overload.__annotations__["return"] for overload in get_overloads(pipeline)]
    assert returned == [path.partition(":")[2] for path, _ in TASKS.values()] + ["Pipeline"]
