"""All commands: names, arguments, help, exit codes, `mmspec info` and `--version`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmspec import cli
from mmspec.cli.common import SamplingFlags

PROMPT = "a red heart, 3d style"

GIVEN = {
    "temperature": 0.7,
    "top_k": 5,
    "top_p": 0.9,
    "min_p": 0.1,
    "repetition_penalty": 1.2,
    "drafter": "jacobi",
    "acceptance": "tolerance:2",
}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["image", PROMPT, "--model", "emoji-46"], "unknown model 'emoji-46'"),
        (["verify", "emoji-46"], "unknown model 'emoji-46'"),
        (["bench", "image", "--model", "emoji-46", "--device", "cpu"], "unknown model 'emoji-46'"),
        (["bench", "image", "--count", "0", "--device", "cpu"], "must be 1 or more"),
        (["bench", "image", "--batch", "0", "--device", "cpu"], "must be 1 or more"),
        (["bench", "image", "--dtype", "fp61", "--device", "cpu"], "unknown dtype 'fp61'"),
        (["bench", "image", "--out", __file__, "--device", "cpu"], "cannot write to"),
        (
            ["bench"],
            "say what to measure: image, speech, vlm or drafters, or --model MODEL and --prompts FILE for prompts of",
        ),
        (["bench", "--quick"], "say what to measure: image, speech, vlm or drafters"),
        (["train", "nowhere.yaml"], "no recipe at nowhere.yaml"),
        (["train", str(Path(__file__).parent)], "recipe.yaml: give the path of a recipe.yaml"),
        (["image", PROMPT, "--model", "~nobody-of-this-name/x"], "no folder ~nobody-of-this-name/x"),
        (["image", "caf\udce9", "--device", "cpu"], "the prompt is not valid UTF-8"),
        (["image", PROMPT, "--device", "gpu"], "gpu"),
    ],
)
def test_wrong_names(run, arguments: list[str], text: str) -> None:
    code, _, err = run(*arguments, model=False)
    assert code == 2 and err.startswith("mmspec: error: ") and text in err


@pytest.mark.parametrize(
    "arguments", [["image"], ["paint", PROMPT], ["image", PROMPT, "--seeed", "3"], ["image", PROMPT, "--n", "many"], []]
)
def test_bad_arguments(run, arguments: list[str]) -> None:
    """What the parser refuses exits with 2 as well."""
    code, _, err = run(*arguments, model=False)
    assert code == 2 and "Traceback" not in err


@pytest.mark.parametrize("command", ["image", "speak", "ask", "chat", "bench", "train", "verify", "info"])
def test_help_has_an_example(run, command: str) -> None:
    code, out, _ = run(command, "--help", model=False)
    assert code == 0 and f"mmspec {command}" in out.replace(f"usage: mmspec {command}", "")


def test_info(run) -> None:
    """Versions, devices, rules; JSON for machines."""
    code, out, _ = run("info", "--json", model=False)
    found = json.loads(out)
    assert code == 0 and found["acceptance"]["exact"] == "lossless" and found["acceptance"]["typical"] == "lossy"
    assert {"torch", "devices", "models", "drafters", "threads"} <= found.keys()
    code, out, _ = run("info", model=False)
    assert code == 0 and "jacobi" in out


def test_module_and_version() -> None:
    """`python -m mmspec --version` answers without importing torch."""
    code = (
        "import sys; sys.argv = ['mmspec', '--version']\ntry:\n import mmspec.__main__\n"
        "except SystemExit as end:\n print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.splitlines()[0].startswith("mmspec ") and done.stdout.splitlines()[1] == "0 False", done.stderr


@pytest.mark.parametrize("command", [["image", PROMPT], ["speak", "Hello."], ["ask", "red.png", "what?"]])
def test_sampling_options_reach_the_pipeline(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The options are spelled alike in every command; those that are left out change nothing."""
    runs: list[dict] = []

    def record(self) -> int:
        runs.append(self.sampling_kwargs)
        return 0

    for kind in (cli.Image, cli.Speak, cli.Ask):
        assert issubclass(kind, SamplingFlags)
        monkeypatch.setattr(kind, "run", record)
    flags = [text for name, value in GIVEN.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    for arguments in (flags, []):
        with pytest.raises(SystemExit) as end:
            cli.main([*command, *arguments])
        assert end.value.code == 0
    assert runs[0] == GIVEN
    assert runs[1] == {
        "temperature": None,
        "top_k": None,
        "top_p": None,
        "min_p": None,
        "repetition_penalty": None,
        "drafter": None,
        "acceptance": "exact",
    }
