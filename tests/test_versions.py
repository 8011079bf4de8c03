"""Versions of the libraries, and the provenance of measurements."""

import subprocess
from pathlib import Path

import pytest
import torch

import mmspec
from mmspec import versions


def test_versions() -> None:
    facts = versions.versions()
    assert facts["mmspec"] == mmspec.__version__ and facts["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"python", "transformers", "diffusers"} < facts.keys()


def test_provenance() -> None:
    facts = versions.provenance("cpu")
    assert facts["device"] == "cpu" and facts["threads"] == torch.get_num_threads() and facts["processor"]
    assert versions.versions().items() <= facts.items() and "commit" in facts


def test_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The short hash of the checkout, with a + once a tracked file was changed; nothing outside a checkout."""
    module = tmp_path / "mmspec" / "versions.py"
    module.parent.mkdir()
    module.write_text("")
    monkeypatch.setattr(versions, "__file__", str(module))
    assert versions.commit() == ""

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    head = versions.commit()
    assert len(head) >= 7 and not head.endswith("+")
    module.write_text("changed")
    assert versions.commit() == head + "+"
    (tmp_path / "inner" / "mmspec").mkdir(parents=True)
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "inner" / "mmspec" / "versions.py"))
    assert versions.commit() == ""  # an installed copy inside another repository
