"""The pages that are made from docstrings, and pages whose code is run."""

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from tiny import llama

from mmspec.drafters.layouts import LAYOUTS

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_api_is_current() -> None:
    """docs/api.md is what `python docs/make_api.py` writes."""
    assert (DOCS / "api.md").read_text() == runpy.run_path(str(DOCS / "make_api.py"))["page"]()


def test_figures_are_current() -> None:
    """What `mmspec info MODEL` shows was measured: models/*/results.json are what docs/make_figures.py writes."""
    made = runpy.run_path(str(DOCS / "make_figures.py"))
    for model in made["MODELS"]:
        assert json.loads((DOCS.parent / "models" / model / "results.json").read_text()) == made["figures"](model)


def test_layouts_have_proofs() -> None:
    """docs/layouts.tsv names every layout that is known, and for those that are read tests that there are."""
    made = runpy.run_path(str(DOCS / "make_layouts.py"))
    rows = {row["layout"]: row for row in made["rows"]()}
    assert rows.keys() == {layout.name for layout in LAYOUTS}
    tests = {test for row in rows.values() for proof in made["PROOFS"] for test in row[proof].split()}
    for module, function in (test.split("[")[0].split("::") for test in tests):
        code = (DOCS.parent / "tests" / "drafters" / f"{module}.py").read_text()
        assert f"def {function}(" in code, (module, function)
    read, page = {layout.name for layout in LAYOUTS if layout.path}, (DOCS / "drafter-layouts.md").read_text()
    for name, row in rows.items():
        assert all(row[proof] for proof in (made["PROOFS"] if name in read else ["refusals"])), name
        assert (f"| {name} |" if name in read else f"- {name}:") in page


@pytest.mark.slow
def test_rules_and_processors_run(capsys: pytest.CaptureFixture) -> None:
    """The examples of own rules, processors and grammars do what the page says."""
    page = (DOCS / "rules-and-processors.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.S))
    exec(compile(code, "rules-and-processors.md", "exec"), {"__name__": "page"})
    assert "near:0.05 (NOT lossless)" in capsys.readouterr().out


def test_generate_of_the_readme(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """The snippet for any language model runs."""
    import transformers

    class Letters:
        """As much of a tokenizer as the snippet uses."""

        def __call__(self, text: str, return_tensors: str | None = None) -> transformers.BatchEncoding:
            ids = [ord(letter) % 40 for letter in text]
            if return_tensors is None:
                return transformers.BatchEncoding({"input_ids": ids})
            return transformers.BatchEncoding(
                {"input_ids": [ids], "attention_mask": [[1] * len(ids)]}, tensor_type="pt"
            )

        def decode(self, ids: list[int]) -> str:
            return f"{len(ids)} tokens"

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda path: llama(40, torch.float32))
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda path: Letters())
    page = (DOCS.parent / "README.md").read_text()
    for mark, expected in (("generate", "100 tokens\n"), ("speculate", "116 tokens\n")):
        code = re.search(rf"<!-- {mark} -->\n```python\n(.*?)```", page, re.S)
        assert code is not None
        exec(compile(code[1], "README.md", "exec"), {"__name__": "page"})
        assert capsys.readouterr().out == expected


def test_training_of_a_drafter(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snippet for a drafter of one's own model trains one that loads by name and changes no token."""
    import mmspec

    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("".join(f"a cat face {number}\n" for number in range(8)))
    code = re.search(r"<!-- train -->\n```python\n(.*?)```", (DOCS / "train-a-drafter.md").read_text(), re.S)
    assert code is not None
    small = code[1].replace("path/to/model", str(folder)).replace("steps=1000", "steps=2, evaluations=1")
    small = small.replace("held_out=16", "held_out=1, length=10")
    exec(compile(small, "train-a-drafter.md", "exec"), {"__name__": "page"})
    pipe = mmspec.pipeline("text-to-image", folder, device="cpu", dtype="fp64")
    pipe.set_progress_bar_config(disable=True)
    plain, drafted = (pipe("a red heart", seed=3, drafter=drafter) for drafter in ("none", "medusa"))
    assert plain.tokens == drafted.tokens and drafted.stats.drafter == "medusa"
