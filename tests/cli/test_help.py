"""Help: narrow enough for the terminal, without the parser's types, without colours where none are wanted."""

import io
import json
import re
import sys

import pytest

from mmspec import cli

NOISE = re.compile(r"\{None\}|\{\[|\(default: \)|\(default: None\)|\bSTR\b|\bINT\b|\bFLOAT\b|\bPATH\b")


def show_help(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments, "--help"])
    assert not end.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_width(command: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """No line is wider than the terminal, which would break words."""
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = show_help(capsys, *command.split()).splitlines()
    assert max(len(line.rstrip()) for line in lines if "{" not in line) <= columns


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_no_noise(command: str, capsys: pytest.CaptureFixture) -> None:
    """Options are described in words, and every one of them is."""
    text = re.sub(r"[│\s]+", " ", show_help(capsys, command))
    assert not NOISE.search(text), NOISE.search(text)
    if "--device" in text:
        assert re.search("--device DEVICE auto, cpu, cuda", text)
    if "--dtype" in text:
        assert "bf16, fp32" in text or "bf16 and fp32" in text


def test_first_line_and_version(capsys: pytest.CaptureFixture) -> None:
    """The first words say what the program does, and `--version` is listed."""
    text = show_help(capsys)
    assert "Draws pictures, speaks and answers questions" in text and "--version" in text
    with pytest.raises(SystemExit):
        cli.main(["help", "image"])
    assert "--guidance" in capsys.readouterr().out


@pytest.mark.parametrize("colours", [True, False])
def test_no_color(colours: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """NO_COLOR is respected even in a terminal."""

    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "__stdout__", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    text = show_help(capsys, "info")
    assert ("\x1b[" in text) == colours
    assert all(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) <= 80 for line in text.splitlines())
    with pytest.raises(SystemExit):
        cli.main(["image", "a", "--seed", "abc"])
    assert (
        capsys.readouterr().err == "mmspec: error: --seed: 'abc' is not a whole number; mmspec image --help says more\n"
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "there is no command: give one of image, speak"),
        (["speek"], "unknown command 'speek': did you mean 'speak'"),
        (["image", "a", "--seed", "abc"], "--seed: "),
        (["image", "a", "--seed"], "--seed"),
        (["info", "a", "b"], "b; mmspec info --help says more"),
        (["ask"], "there is no question"),
        (["bench", "pictures"], "image"),
        (["speak", "a", "--temprature=1"], "mmspec speak has no option --temprature: did you mean --temperature"),
    ],
)
def test_errors_of_the_parser(arguments: list[str], text: str, capsys: pytest.CaptureFixture) -> None:
    """One line, as all other errors, and exit code 2."""
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("mmspec: error: ") and text in error
    assert error.count("\n") == 1 and not re.search("[│╭╰]", error)


def test_info_of_a_model(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Voices, words, defaults, and drafters with figures and where they were measured; the same as JSON."""

    def info(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            cli.main(["info", *arguments])
        assert not end.value.code
        return capsys.readouterr().out

    monkeypatch.setenv("COLUMNS", "100")
    assert "heart, michael, bella" in info("wren-86") and "vadusa (default)" in info("wren-86")
    text = info("emoji-64")
    for piece in ("names", "styles", "guidance_scale 2.0", "jacobi (default)", "2.37x", "bf16", "commit 3c3ffb9"):
        assert piece in text
    facts = json.loads(info("emoji-64", "--json"))
    assert facts["task"] == "text-to-image" and len(facts["words"]["names"]) == 314
    assert facts["drafters"]["jacobi"] == {"mean_acceptance_length": 3.66, "speedup": 2.37}
    assert facts["measured"]["device"] == "cpu" and facts["defaults"]["temperature"] == 0.7
    assert "{'" not in info() and "magpie-135" in info()
