"""What is wrong is said before anything heavy is imported, and a command imports no more than it needs."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from mmspec.cli import common

ROOT = Path(__file__).parents[2]

REFUSED = [
    (["imag"], "unknown command 'imag': did you mean 'image'"),
    (["image", "a", "--sead", "3"], "mmspec image has no option --sead: did you mean --seed?"),
    (["image", "a", "--seed", "abc"], "--seed"),
    (["image"], "there is no prompt"),
    (["image", ""], "the prompt is empty"),
    (["image", "a", "--drafter", "hwak"], "unknown drafter 'hwak': did you mean 'hawk'"),
    (["image", "a", "--drafter", "vadusa"], "drafter 'vadusa' has no weights for this model"),
    (["image", "a", "--model", "wren-86"], "holds a TextToSpeechPipeline, not a TextToImagePipeline"),
    (["image", "a", "--dtype", "fp61"], "unknown dtype 'fp61'"),
    (["image", "a", "--device", "gpu"], "unknown device 'gpu'"),
    (["image", "a", "--top-p", "0"], "top_p=0.0 leaves no token"),
    (["image", "a", "-o", "nowhere/a.png"], "there is no folder"),
    (["speak", "Hi", "--voice", "nova"], "unknown voice 'nova': known are bella, heart, michael"),
    (["speak", "--file", "nowhere.txt"], "cannot read nowhere.txt"),
    (["speak", "Hi", "--drafter", "nope"], "unknown drafter 'nope'"),
    (["ask", "nowhere.png", "What?"], "no picture at nowhere.png"),
    (["ask", "nowhere.png"], "there is no question"),
    (["ask", "nowhere.png", "What?", "--max-new-tokens", "0"], "max_new_tokens=0"),
    (["chat", "nowhere.png"], "no picture at nowhere.png"),
    (["chat", "--drafter", "nope"], "unknown drafter 'nope'"),
    (["verify", "emoji-64", "--drafters", "nope"], "unknown drafter 'nope'"),
    (["bench", "image", "--drafters", "nope"], "unknown drafter 'nope'"),
    (["info", "emoji-46"], "unknown model 'emoji-46'"),
]


def run_python(code: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess:
    path = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=path)


def test_cheap_errors(tmp_path: Path) -> None:
    """Each exits with 2, and without torch."""
    code = """
import json, sys
from mmspec import cli
for arguments in json.loads(sys.argv[1]):
    try:
        cli.main(arguments)
    except SystemExit as end:
        print(end.code, "torch" in sys.modules, "transformers" in sys.modules, flush=True)
"""
    done = run_python(code, json.dumps([arguments for arguments, _ in REFUSED]), folder=tmp_path)
    errors = done.stderr.splitlines()
    assert len(errors) == len(REFUSED), done.stderr
    for (arguments, text), error, line in zip(REFUSED, errors, done.stdout.splitlines(), strict=True):
        assert error.startswith("mmspec: error: ") and text in error, (arguments, error)
        assert line == "2 False False", (arguments, line)


def test_loading_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal is told that a model is being loaded; a pipe, and who asks for quiet, are not."""
    for terminal, quiet in ((True, False), (True, True), (False, False)):
        screen = io.StringIO()
        monkeypatch.setattr(common, "console", Console(file=screen, force_terminal=terminal))
        with common.loading("emoji-64", quiet):
            pass
        assert ("loading emoji-64" in screen.getvalue()) == (terminal and not quiet)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("mmspec.cli", ["torch", "transformers", "PIL"]),
        ("mmspec.pipelines.image_text_to_text", ["diffusers", "matplotlib", "hibari"]),
        ("mmspec.pipelines.text_to_image", ["matplotlib", "hibari"]),
        ("mmspec.pipelines.text_to_speech", ["diffusers", "matplotlib"]),
    ],
)
def test_imports(module: str, unwanted: list[str], tmp_path: Path) -> None:
    """What is not used is not imported."""
    code = "import importlib, sys; importlib.import_module(sys.argv[1]); print(*sys.modules)"
    done = run_python(code, module, folder=tmp_path)
    assert done.returncode == 0 and not set(unwanted) & set(done.stdout.split()), done.stderr
