"""The pages that are made from docstrings."""

import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_api_is_current() -> None:
    """docs/api.md is what `python docs/make_api.py` writes."""
    assert (DOCS / "api.md").read_text() == runpy.run_path(str(DOCS / "make_api.py"))["page"]()
