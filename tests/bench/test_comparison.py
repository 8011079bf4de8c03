"""Two results side by side: rows by label and setting, prompts that both have, warnings, and files that are none."""

import json
from pathlib import Path

import pytest

from mmspec.bench.comparison import differences, markdown, read_results
from mmspec.errors import MmspecError

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
PATHS = (Path("a.json"), Path("b.json"))


def row(label: str, speed: float, dtype: str = "bf16", temperature: float = 0.0, **more: object) -> dict:
    fields = {"label": label, "setting": "-", "dtype": dtype, "temperature": temperature, "batch": 1, "guidance": 1.0}
    return fields | {"tokens_per_second": speed, "speedup": speed / 10, "mean_acceptance_length": 2.0} | more


def own(label: str, seconds: list[float], **more: str) -> dict:
    """A row that made 10 tokens of each prompt in so many seconds."""
    prompts = [{"tokens": 10, "seconds": second} for second in seconds]
    return row(label, 10 * len(seconds) / sum(seconds), prompts=prompts, **more)


def results(*rows: dict, ids: str = "", **more: object) -> dict:
    prompts = {"prompts": [{"id": one, "seed": 0} for one in ids]} if ids else {}
    origin = {"suite": "own prompts", "model": "m", "provenance": {"device": "cpu", "commit": "abc"}}
    return origin | {"rows": list(rows)} | prompts | more


def lines(text: str) -> dict[str, list[str]]:
    """The cells of each line of the tables by its label."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "×" in line]
    return {line[0]: line[1:] for line in cells}


def test_prompts_that_both_have() -> None:
    """B/A is of prompts 2 and 3 alone, which are at other places in B, and paired: twice as fast on both."""
    first = results(own("lookup", [1.0, 2.0, 4.0]), ids="123")
    second = results(own("lookup", [2.0, 1.0, 100.0]), ids="324")
    cells = lines(markdown(first, second, PATHS))["lookup"]
    assert cells == ["4", "0", "2.00× [2.00, 2.00]", "0.43×", "0.03×", "2.00", "2.00"]
    assert differences(first, second) == ["prompts or seeds differ: A has 3, B 3, and 2 are the same"]
    other = results(own("lookup", [2.0, 1.0, 100.0]), ids="567")
    assert "[" not in lines(markdown(first, other, PATHS))["lookup"][2]
    assert "and 0 are the same" in differences(first, other)[0]


def test_rows_of_one_setting_meet() -> None:
    """Temperatures and labels tell rows apart; what only one run has is listed."""
    first = results(row("AR", 10), row("AR", 20, temperature=1.0), row("lookup", 30))
    second = results(row("AR", 40, temperature=1.0), row("AR", 11), row("msd", 50), row("lookup", 7, temperature=2.0))
    text = markdown(first, second, PATHS)
    cold, warm = text.split("## ")[1:]
    assert "dtype" not in cold and "temperature 0.0" in cold and "temperature 1.0" in warm
    assert lines(cold) == {"AR": ["10", "11", "1.10×", "1.00×", "1.10×", "2.00", "2.00"]}
    assert lines(warm)["AR"][2] == "2.00×"
    assert text.endswith("In A alone: lookup.\n\nIn B alone: msd, lookup.\n")
    with pytest.raises(MmspecError, match="a.json and b.json have no row in common: rows are the same where batch, "):
        markdown(first, results(row("AR", 10, temperature=3.0)), PATHS)


def test_dtypes() -> None:
    """One dtype in each is compared with a warning; where a run has two, rows of one meet those of the same."""
    first, second = results(row("AR", 10)), results(row("AR", 20, "fp32"))
    assert lines(markdown(first, second, PATHS))["AR"][2] == "2.00×"
    assert differences(first, second) == ["dtypes differ: bf16 and fp32"]
    both = results(row("AR", 30), row("AR", 20, "fp32"))
    assert lines(markdown(first, both, PATHS))["AR"][2] == "3.00×"


def test_what_differs() -> None:
    same = results(row("AR", 10))
    assert differences(same, same) == []
    other = same | {"model": "n", "provenance": {"device": "cuda", "threads": 4}}
    assert differences(same, other) == [
        "models differ: m and n",
        "device differ: cpu and cuda",
        "threads differ: None and 4",
    ]


@pytest.mark.parametrize("suite", ["image", "speech", "vlm"])
def test_results_of_suites(suite: str) -> None:
    """What the suites write is compared too, without intervals; lengths that are not known are dashes."""
    file = RESULTS / suite / "results.json"
    found = read_results(file)
    text = markdown(found, found, (file, file))
    assert differences(found, found) == [] and "[" not in text and "alone" not in text
    ratios = [line.split("|")[4].strip() for line in text.splitlines() if "×" in line]
    assert len(ratios) == len(found["rows"]) and set(ratios) == {"1.00×"}
    assert ("| – | – |" in text) == (suite == "vlm")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [], "model": "m", "provenance": {}}', '{"rows": [{}]}'])
def test_files_that_hold_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(MmspecError, match="a.json holds no results of mmspec bench: give two files results.json"):
        read_results(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(MmspecError, match="cannot read .*gone.json: No such file or directory"):
        read_results(tmp_path / "gone.json")
    (tmp_path / "latin.json").write_bytes(json.dumps({"model": "é"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(MmspecError, match="holds no results"):
        read_results(tmp_path / "latin.json")
