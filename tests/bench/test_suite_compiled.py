"""A suite with compiled passes: plain decoding and `generate` both ways, and both ratios."""

from pathlib import Path

import pytest

from mmspec.bench import image
from mmspec.bench.suite import Case, Choice

pytestmark = pytest.mark.slow


def test_rows(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "choose_min_query_len", lambda target, prompts, length: None)
    cases = (Case("AR, our loop", "none"), Case("jacobi", "jacobi"))
    rows = image.run_setting(model_folder, "fp32", "cpu", 1, 1, 0, cases, Choice(compiled=True, nodes=(4,)))
    assert {row["label"]: row["compiled"] for row in rows} == {
        "AR, our loop": False,
        "AR, our loop, compiled": True,
        "transformers.generate": False,
        "transformers.generate, compiled": True,
        "jacobi": True,
    }
    assert max(row["speedup"] for row in rows if row["drafter"] == "none") == 1
    assert max(row["over_generate"] for row in rows if row["drafter"] == "transformers") == 1
