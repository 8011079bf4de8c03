"""Write docs/drafter-layouts.md from the results of the drafters' tests.

pytest tests/drafters --junitxml layouts.xml; python docs/make_layouts.py layouts.xml

Which tests prove what of a layout is in layouts.tsv. Exit code 1 if one of them failed or did not run.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from mmspec.drafters.layouts import LAYOUTS
from mmspec.versions import versions

HERE = Path(__file__)
PAGE, TABLE = HERE.with_name("drafter-layouts.md"), HERE.with_name("layouts.tsv")
PROOFS = ("forward", "equality", "joining", "refusals")
Results = dict[tuple[str, str], bool]


def rows() -> list[dict[str, str]]:
    """The table: a layout, how it is published, and the tests of each of `PROOFS`."""
    names, *lines = (line.split("\t") for line in TABLE.read_text("utf-8").splitlines())
    return [dict(zip(names, line, strict=True)) for line in lines]


def read(paths: Iterable[str]) -> Results:
    """Whether each test passed, by its module and its name; those that were skipped are left out."""
    return {
        (case.get("classname", "").rpartition(".")[2], case.get("name", "")): case.find("failure") is None
        and case.find("error") is None
        for path in paths
        for case in ElementTree.parse(path).iter("testcase")
        if case.find("skipped") is None
    }


def passed(results: Results, test: str) -> list[bool]:
    """The results of a test as the table names it, module::function or one of its cases."""
    module, _, name = test.partition("::")
    return [
        result
        for (place, found), result in results.items()
        if place == module and (found == name or found.startswith(f"{name}["))
    ]


def cell(results: Results, tests: str) -> str:
    """How many cases of tests passed, of how many; then the tests."""
    found = [result for test in tests.split() for result in passed(results, test)]
    if not found:
        return ""
    names = ", ".join(f"`{test.partition('::')[2]}`" for test in tests.split())
    return f"{sum(found)}/{len(found)}: {names}"


def problems(results: Results) -> list[str]:
    """Tests that failed or did not run."""
    tests = {test for row in rows() for proof in PROOFS for test in row[proof].split()}
    return sorted(test for test in tests if not (found := passed(results, test)) or not all(found))


def page(results: Results, commit: str | None) -> str:
    """The page as Markdown."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    software = ", ".join(f"{name} {version}" for name, version in versions().items())
    readers = {layout.name: layout.path for layout in LAYOUTS}
    lines = [
        "# Layouts of drafters, and what proves them",
        "",
        "Written by `docs/make_layouts.py` from the results of the tests in `tests/drafters` at commit",
        f"{commit or head} ({software}). A cell is how many cases passed, of how many, and of which tests.",
        "Weights are random and written as they are published; no published weights could be downloaded here, so",
        "nothing is said of how many tokens of a published drafter are accepted.",
        "",
        "- *forward*: what is drafted is what a forward pass says that the test has anew, from the published",
        "  description, with plain operations of torch and without a cache; of the Gemma-4 assistant also what",
        "  transformers' own class says, and of a small model that alone.",
        "- *equal*: the tokens are those of plain decoding in float64, greedy and at T = 1, in a batch of rows of",
        "  different length (of three; of two in some of the tests of pictures) and alone; drafting does not wait for",
        "  the device, unless layers have experts.",
        "- *join and leave*: rows that come and go between rounds say what plain decoding says.",
        "- *refusals*: what is missing, unexpected, of another shape or not known is an error that names it.",
        "",
        "| layout | published as | read by | forward | equal | join and leave | refusals |",
        "|" + "---|" * 7,
    ]
    for row in (row for row in rows() if readers[row["layout"]]):
        module, _, kind = readers[row["layout"]].partition(":")
        cells = " | ".join(cell(results, row[proof]) for proof in PROOFS)
        lines.append(f"| {row['layout']} | {row['published as']} | `{kind}` in `{module}.py` | {cells} |")
    lines += ["", "Known, and refused by name:", ""]
    for row in (row for row in rows() if not readers[row["layout"]]):
        lines.append(f"- {row['layout']}: {cell(results, row['refusals'])}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", help="what pytest --junitxml wrote")
    parser.add_argument("--commit", help="of which the results are; HEAD if left out")
    options = parser.parse_args()
    found = read(options.results)
    if wrong := problems(found):
        sys.exit(f"failed, or without a result: {', '.join(wrong)}")
    PAGE.write_text(page(found, options.commit))
