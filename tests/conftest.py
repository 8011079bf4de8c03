"""Shape checks on for all of mmspec while tests run; what tests share."""

import sys
from pathlib import Path
from typing import runtime_checkable

import pytest
from jaxtyping import install_import_hook

sys.path.insert(0, str(Path(__file__).parent))
# Not mmspec.decode: the checker's wrapper would hide from torch.inference_mode that stream() is a generator.
install_import_hook([f"mmspec.{part}" for part in ("accept", "cache", "codecs", "drafters", "metrics", "sampling", "targets", "tree")], "shapes.check")

import mmspec.targets.base  # noqa: E402

runtime_checkable(mmspec.targets.base.Target)

import mmspec.drafters.base  # noqa: E402

runtime_checkable(mmspec.drafters.base.Drafter)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device; skipped without one")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
