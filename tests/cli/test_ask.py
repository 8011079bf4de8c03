"""`mmspec ask`: answers on standard output, pictures from pipes, JSON, and errors."""

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from mmspec import cli
from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline


@pytest.fixture
def run(vision_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    """Run a command in a folder that has red.png: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "red").save("red.png")

    def call(*arguments: object, heard: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(heard)))
        with pytest.raises(SystemExit) as caught:
            cli.main([*map(str, arguments), "--model", str(vision_folder), "--device", "cpu", "--dtype", "fp64"])
        return int(caught.value.code or 0), *capfd.readouterr()

    return call


@pytest.fixture(scope="module")
def answer(vision_folder: Path) -> str:
    pipe = ImageTextToTextPipeline.from_pretrained(vision_folder, torch_dtype="fp64")
    return pipe(Image.new("RGB", (40, 30), "red"), "what is this?", seed=4, temperature=1.0).text


LAW = ("--seed", 4, "--temperature", 1)


@pytest.mark.parametrize("drafter", ["none", "jacobi", "msd"])
@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_ask(run, answer: str, drafter: str, stream: list[str]) -> None:
    """The answer alone on standard output, the figures on standard error, the same with every drafter."""
    code, out, err = run("ask", "red.png", "what is this?", *LAW, "--drafter", drafter, *stream)
    assert code == 0 and out == answer + "\n"
    for piece in ("tokens/s", "mean acceptance length", drafter, "lossless", "seed 4"):
        assert piece in err
    assert run("ask", "red.png", "what", "is", "this?", *LAW, "--quiet", *stream)[1:] == (answer + "\n", "")


def test_streams_are_literal(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like markup, or like the name of an emoji, is written as it is."""
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setattr(PreTrainedTokenizerFast, "decode", lambda self, ids, **more: "I :heart: [b]1\tx"[: len(ids)])
    assert run("ask", "red.png", "what?", *LAW, "--stream", "--quiet", "--max-new-tokens", 17)[1] in (
        "I :heart: [b]1\tx"[:n] + "\n" for n in range(1, 18)
    )


@pytest.mark.parametrize(
    ("settings", "coloured"), [({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)]
)
def test_runs_are_tinted(run, answer: str, monkeypatch: pytest.MonkeyPatch, settings: dict, coloured: bool) -> None:
    """In a terminal with colours what came in one round has one colour."""
    for name, value in ({"TERM": "xterm-256color"} | settings).items():
        monkeypatch.setenv(name, value)
    out = run("ask", "red.png", "what is this?", *LAW, "--stream", "--quiet")[1]
    assert re.sub(r"\x1b\[[0-9;]*m", "", out) == answer + "\n" and ("\x1b[36m" in out and "\x1b[32m" in out) == coloured


def test_ask_a_pipe(run, answer: str, tmp_path: Path) -> None:
    """- is a picture on standard input."""
    assert run("ask", "-", "what is this?", *LAW, heard=(tmp_path / "red.png").read_bytes())[1] == answer + "\n"


def test_ask_for_json(run, answer: str) -> None:
    """One line of JSON; a lossy rule says so."""
    code, out, err = run("ask", "red.png", "what is this?", *LAW, "--json")
    found = json.loads(out)
    assert code == 0 and err == "" and out.count("\n") == 1
    assert found["answer"] == answer and found["lossless"] is True and found["seed"] == 4 and found["tokens"] > 1
    lossy = run("ask", "red.png", "what is this?", *LAW, "--acceptance", "tolerance:3", "--drafter", "msd")[2]
    assert "NOT lossless" in lossy


def test_answer_comes_before_the_figures(run, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer and its line break have left before the statistics are written, wherever either goes."""
    from mmspec.cli import ask

    order = []
    honest = ask.say
    monkeypatch.setattr(ask, "say", lambda text: (order.append("figures"), honest(text)))
    monkeypatch.setattr("builtins.print", lambda *texts, **options: order.append((texts, options.get("flush"))))
    run("ask", "red.png", "what is this?", *LAW)
    assert order == [((answer,), True), "figures"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "nowhere.png", "what?"], "no picture at nowhere.png"),
        (["ask", "broken.png", "what?"], "cannot be read as a picture"),
        (["ask", "red.png", " "], "there is no question"),
        (["ask", "what? " * 60, "--drafter", "mds"], "unknown drafter 'mds'"),
        (["ask", "~nobody-of-this-name is what?", "--drafter", "mds"], "unknown drafter 'mds'"),
        (["ask", "red.png", "what?", "--drafter", "mds"], "unknown drafter 'mds'"),
        (["chat", "nowhere.png"], "no picture at nowhere.png"),
        (["chat", "-"], "the picture must be a file or a URL"),
    ],
)
def test_refused(run, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and message in err and "Traceback" not in err
