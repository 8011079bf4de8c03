"""Run the tests of every fault that was found in use, and print what it did, what it does, and whether they pass:

    python docs/faults.py

The rows are in faults.tsv: name, input, what came of it, what is right, tests. Exit code 1 if a test fails.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]


def run(tests: list[str]) -> list[ElementTree.Element]:
    """The results of tests, in one run of pytest."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "results.xml"
        options = ["-q", "--tb=no", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
        command = [sys.executable, "-m", "pytest", *options, f"--junitxml={file}", *tests]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        return list(ElementTree.parse(file).iter("testcase"))


def belongs(case: ElementTree.Element, test: str) -> bool:
    """Whether a result is of a test as the table names it: a file, a function, or one of its cases."""
    path, _, name = test.partition("::")
    module, found = path.removesuffix(".py").replace("/", "."), case.get("name", "")
    return case.get("classname") == module and (not name or found == name or found.startswith(f"{name}["))


def main() -> int:
    rows = [line.split("\t") for line in (ROOT / "docs" / "faults.tsv").read_text("utf-8").splitlines()]
    cases, failed = run(sorted({test for row in rows for test in row[4].split()})), False
    print("| fault | input | before | right | tests |\n|---|---|---|---|---|")
    for name, given, before, right, tests in rows:
        found = [case for case in cases if any(belongs(case, test) for test in tests.split())]
        bad = sum(case.find("failure") is not None or case.find("error") is not None for case in found)
        skipped = sum(case.find("skipped") is not None for case in found)
        failed |= bad > 0 or len(found) == skipped
        result = f"{len(found) - bad - skipped} passed" + (f", {bad} failed" if bad else "")
        given = given.replace("|", "\\|")
        print(f"| {name} | `{given}` | {before} | {right} | {result}: {tests.replace(' ', ', ')} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
