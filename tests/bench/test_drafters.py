"""The suite of all drafters: entrants, tables, trained folders and errors."""

import json
from pathlib import Path

import pytest
from tiny import drafter
from tiny_text import save_chat_model

from mmspec import cli, drafters, zoo
from mmspec.bench import drafters as suite
from mmspec.bench.drafters import FIELDS, Field
from mmspec.pipelines import pipeline

pytest.importorskip("matplotlib")


def test_fields() -> None:
    """Prompts are of the model's held-out ones, as many as asked for, and none comes twice."""
    for field in FIELDS:
        rows = field.rows(zoo.resolve(field.model), 4)
        assert len({(row["prompt"], row.get("image")) for row in rows}) == 4, field
        assert all(row.get("image") for row in rows) == (field.name == "descriptions")


def test_a_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that need no training, those of the default drafter and a trained one, at equal nodes and at their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = save_chat_model(tmp_path / "letters")
    trained = tmp_path / "trained" / "text" / "small"
    pipe = pipeline("image-text-to-text", model, dtype="fp64")
    drafter("medusa", pipe.target).save_pretrained(trained)
    (trained / "report.json").write_text(json.dumps({"training": {"hours": 0.05}}))
    monkeypatch.setattr(suite, "QUESTIONS", ("hello?", "who are you?"))
    field = Field("text", str(model))
    suite.run(tmp_path / "out", tmp_path / "trained", 2, (0.0,), "fp64", nodes=(2, 4), tokens=12, fields=(field,))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = {row["label"]: row for row in results["rows"]}
    names = [name for name in drafters.usable(model) if name != "none"]
    assert {*names, "del", "cascade:lookup", "rasd:lookup", "small"} <= rows.keys()
    assert rows["small"]["minutes"] == pytest.approx(3)
    assert all(row["equal"] == 2 for label, row in rows.items() if label in names)
    assert all(row["by_nodes"].keys() == {"2", "4"} for label, row in rows.items() if label in names)
    report = (tmp_path / "out" / "results.md").read_text()
    assert "4 nodes" in report and "| small |" in report and str(tmp_path) not in report
    assert (tmp_path / "out" / "results.png").stat().st_size > 1000
    assert (tmp_path / "out" / "text" / "results.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trained", "nowhere"], "no folder nowhere"),
        (["--drafters", "jacobi"], "leave them out"),
        (["--batch", "4"], "leave them out"),
        (["--dtype", "fp32", "bf16"], "takes one dtype"),
    ],
)
def test_wrong_options(arguments: list[str], message: str, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", "drafters", *arguments])
    assert end.value.code == 2 and message in capfd.readouterr().err
