"""Write docs/models.md from the results of the family tests.

pytest -m "sweep or not sweep" tests/targets --junitxml families.xml; python docs/make_models.py families.xml

Of several files, the last result of a test counts.
"""

import argparse
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

from mmspec.versions import versions

HERE = Path(__file__)
PAGE = HERE.with_name("models.md")
sys.path.insert(0, str(HERE.parents[1] / "tests"))

# Modules of tests, what their families do, and how one of a single family is called; a name that ends with a colon goes
# before each of the module's parameters.
MODULES = {
    "test_janus": ("draw", "Janus, Janus-Pro"),
    "test_emu3": ("draw", "Emu3-Gen"),
    "test_chameleon": ("draw", "Chameleon's kin:"),
    "test_glm_image": ("draw", "GLM-Image"),
    "test_llamagen": ("draw", "LlamaGen:"),
    "test_speech_families": ("speak", ""),
    "test_csm": ("speak", "CSM"),
    "test_talker": ("speak", "Qwen2.5-Omni's talker"),
    "test_encoder_decoder": ("transcribe or translate", ""),
    "test_vlm_families": ("answer about pictures and sounds", ""),
    "test_text_families": ("continue text", ""),
}
# What a test compares, by words of its name; the first that fits.
COMPARED = {
    "equal to generate": ("generate", "transformers"),
    "own law at T = 1": ("law", "samples", "own", "those_of_the_description"),
    "drafters, batches": ("draft", "batch", "join", "rows"),
}
REMARKS = {
    "draw": "LlamaGen is in no library: it is compared with a forward that is written anew from its description.",
    "transcribe or translate": "Equal to their own `generate`, long recordings and timestamps included: "
    "`tests/test_custom_generate_whisper.py`.",
}
COLUMNS = (*COMPARED, "other tests")
# Parameters of tests that are no families.
OTHERS = re.compile(r"^((greedy|T=1|True|False|[0-9.]+)-)+|(-(True|False|[0-9]+\.[0-9]+))+$|^(True|False|[0-9.]+)$")


def family_of(name: str, module: str) -> str:
    """The family of a test by its module or its parameters, "" for a test of none."""
    parameter, single = OTHERS.sub("", name.partition("[")[2].rstrip("]")), MODULES[module][1]
    if single.endswith(":"):
        return parameter and f"{single} {parameter}"
    return single or parameter


def column_of(name: str) -> str:
    """What a test compares."""
    function = name.partition("[")[0]
    return next((column for column, words in COMPARED.items() if any(word in function for word in words)), COLUMNS[-1])


def read(paths: list[str]) -> tuple[dict, dict]:
    """Passed and all tests by kind, family and column; and the families that are refused, by kind."""
    counts: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(lambda: [0, 0])))
    refused: dict = defaultdict(list)
    cases = [case for path in paths for case in ElementTree.parse(path).iter("testcase")]
    results = {(case.get("classname", "").rpartition(".")[2], case.get("name", "")): case for case in cases}
    for (module, name), case in results.items():
        if module not in MODULES or case.find("skipped") is not None:
            continue
        kind, family = MODULES[module][0], family_of(name, module)
        passed = case.find("failure") is None and case.find("error") is None
        if "refused" in name and not MODULES[module][1]:
            refused[kind] += [family] * passed
        elif family:
            count = counts[kind][family][column_of(name)]
            count[0], count[1] = count[0] + passed, count[1] + 1
    return counts, refused


def page(counts: dict, refused: dict, commit: str | None) -> str:
    """The page as Markdown."""
    from text_families import REFUSED as TEXT
    from vlm_table_more import REFUSED as READERS

    reasons = {name: reason for name, (*_, reason) in TEXT.items()} | {name: why for name, (_, why) in READERS.items()}
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    software = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [
        "# Families of models",
        "",
        f"Written by `docs/make_models.py` from the results of the tests at commit {commit or head} ({software}).",
        "A cell is how many of a family's tests passed, of how many. Models are tiny, random, of transformers' own",
        "classes, in float64 where the class knows it; every token depends on all before it.",
        "",
        "- *equal to generate*: greedy plain decoding gives the tokens of the model's own `generate`, row by row and",
        "  in a batch of rows of different length.",
        "- *own law at T = 1*: each sampled token is the argmax of the model's own logits, without a cache, and the",
        "  noise.",
        "- *drafters, batches*: `jacobi`, `lookup` and a tree that guesses right and wrong give plain decoding's",
        "  tokens, greedy and at T = 1, alone and in a batch; rows join and leave.",
        "",
    ]
    for kind, families in counts.items():
        lines += [f"## Models that {kind}", ""]
        lines += ["| family | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
        for family, columns in sorted(families.items(), key=lambda item: item[0].lower()):
            cells = (f"{columns[name][0]}/{columns[name][1]}" if name in columns else "" for name in COLUMNS)
            lines.append(f"| {family} | " + " | ".join(cells) + " |")
        if REMARKS.get(kind):
            lines += ["", REMARKS[kind]]
        if any(refused[kind]):
            shown = "; ".join(f"{name} ({reasons.get(name, '')})".replace(" ()", "") for name in sorted(refused[kind]))
            lines += ["", f"Refused by name: {shown}."]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", help="what pytest --junitxml wrote")
    parser.add_argument("--commit", help="of which the results are; HEAD if left out")
    options = parser.parse_args()
    PAGE.write_text(page(*read(options.results), options.commit))
