"""`mmspec bench` with prompts, drafters and a temperature of one's own."""

import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from mmspec import cli
from mmspec.bench.suite import Case, Choice
from mmspec.drafters import table
from mmspec.drafters.lookup import LookupDrafter

pytest.importorskip("matplotlib")

CASES = (Case("AR, our loop", "none"), Case("jacobi", "jacobi"))


def test_cases() -> None:
    """Plain decoding is always among them; without a choice they are the suite's."""
    assert Choice().cases(CASES) == CASES
    assert Choice(drafters=("none", "mine")).cases(CASES) == (CASES[0], Case("mine", "mine", required=True))


@pytest.mark.slow
def test_bench(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """A drafter that another package registers is measured, at the temperature and on the prompts that are given."""

    class RepeatDrafter(LookupDrafter):
        name = "repeat"

    module = ModuleType("their_package")
    module.RepeatDrafter = RepeatDrafter
    monkeypatch.setitem(sys.modules, "their_package", module)
    entry = EntryPoint("repeat", "their_package:RepeatDrafter", "mmspec.drafters")
    monkeypatch.setattr(table, "entry_points", lambda group: [entry])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Path("prompts.txt").write_text("a red heart\na cat face\n")
    arguments = "--prompts prompts.txt --drafters repeat lookup --temperature 0 --dtype fp32 --device cpu --out found"
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", "image", "--model", str(model_folder), *arguments.split(), "--out", "found"])
    assert not end.value.code, capfd.readouterr().err
    rows = json.loads(Path("found/results.json").read_text())["rows"]
    assert {row["label"] for row in rows} == {"AR, our loop", "transformers.generate", "repeat", "lookup"}
    assert all("T = 0" in row["setting"] and row["tokens"] == 2 * 64 for row in rows)
    assert "repeat" in Path("found/results.md").read_text()
