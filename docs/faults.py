"""Run the tests of every fault that was found in use, and print what it did, what it does, and whether they pass:

    python docs/faults.py

The rows are in faults.tsv: name, input, what came of it, what is right, tests. Exit code 1 if a test fails.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(tests: list[str]) -> str:
    """The last line that pytest prints for some tests."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--tb=no",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=--import-mode=importlib",
    ]
    done = subprocess.run([*command, *tests], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1].strip("= ")


def main() -> int:
    failed = False
    print("| fault | input | before | right | tests |\n|---|---|---|---|---|")
    for line in (ROOT / "docs" / "faults.tsv").read_text("utf-8").splitlines():
        name, given, before, right, tests = line.split("\t")
        result = run(tests.split())
        failed |= "passed" not in result or "failed" in result or "error" in result
        given = given.replace("|", "\\|")
        print(f"| {name} | `{given}` | {before} | {right} | {result}: {tests.replace(' ', ', ')} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
