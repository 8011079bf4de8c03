"""`mmspec chat`: questions from pipes and terminals, its commands, Ctrl-C, and going on after whatever went wrong."""

import builtins
import io
import os
import signal
from pathlib import Path

import pytest
from PIL import Image

from mmspec import cli
from mmspec.cli.chat import read_seed
from mmspec.errors import MmspecError
from mmspec.pipelines.image_text_to_text import ImageTextToTextPipeline

LAW = ("--seed", "4", "--temperature", "1")


class Terminal(io.StringIO):
    """Standard input that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def chat(vision_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    """Run `mmspec chat` in a folder that has red.png: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "red").save("red.png")
    Image.new("RGB", (40, 30), "blue").save("blue.png")

    def call(*arguments: object, piped: bytes = b"", typed: list | None = None) -> tuple[int, str, str]:
        if typed is None:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(piped)))
        else:
            lines = iter(typed)

            def read(prompt: str) -> str:
                line = next(lines, EOFError)
                if not isinstance(line, str):
                    raise line
                return line

            monkeypatch.setattr("sys.stdin", Terminal())
            monkeypatch.setattr(builtins, "input", read)
        with pytest.raises(SystemExit) as caught:
            cli.main(
                ["chat", *map(str, arguments), "--model", str(vision_folder), "--device", "cpu", "--dtype", "fp64"]
            )
        return int(caught.value.code or 0), *capfd.readouterr()

    return call


@pytest.fixture(scope="module")
def pipe(vision_folder: Path) -> ImageTextToTextPipeline:
    return ImageTextToTextPipeline.from_pretrained(vision_folder, torch_dtype="fp64")


def red() -> Image.Image:
    return Image.new("RGB", (40, 30), "red")


def test_piped(chat, pipe) -> None:
    """Every answer knows what was said before; empty lines are passed over; question i has seed + i."""
    code, out, err = chat("red.png", *LAW, "--quiet", piped=b"what is this?\n\n  \nsure?")
    first = pipe(red(), "what is this?", seed=4, temperature=1.0)
    second = pipe([*first.chat(), {"role": "user", "content": "sure?"}], seed=5, temperature=1.0)
    assert (code, out, err) == (0, f"{first.text}\n{second.text}\n", "")
    assert chat(*LAW, "--quiet", piped=b"hello\n")[1] == pipe(None, "hello", seed=4, temperature=1.0).text + "\n"


def test_statistics_are_short(chat) -> None:
    """One line under 80 columns after each answer, and no greeting where nobody types."""
    _, _, err = chat("red.png", *LAW, piped=b"what is this?\n")
    assert err.startswith("[") and err.count("\n") == 1 and len(err) < 80 and "seed 4]" in err
    assert "NOT lossless" in chat("red.png", "--acceptance", "tolerance:3", piped=b"what?\n")[2]


def test_it_goes_on(chat, pipe) -> None:
    """A question that is refused is named, and the talk is what it was."""
    code, out, err = chat("red.png", *LAW, "--quiet", piped=b"/image gone.png\n/nope\n/seed x\nwhat is this?\n")
    assert code == 0 and out == pipe(red(), "what is this?", seed=4, temperature=1.0).text + "\n"
    assert [line.split(":")[1] for line in err.splitlines()] == [" error"] * 3
    assert (
        "no picture at gone.png" in err and "unknown command '/nope'" in err and "/seed x: give a whole number" in err
    )


@pytest.mark.parametrize("seed", ["9" * 5000, "9223372036854775808", "²", "-1", ""])
def test_seeds_that_are_refused(seed: str) -> None:
    """Not only when a question comes, and however long they are."""
    assert read_seed("9223372036854775807") == 2**63 - 1
    with pytest.raises(MmspecError, match="give a whole number from 0 to 9223372036854775807"):
        read_seed(seed)


def test_a_refused_question(chat, pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the processor refuses does not end the chat."""
    honest = ImageTextToTextPipeline.encode

    def encode(self, chats):
        if chats[0][-1]["content"][-1]["text"] == "bad":
            raise MmspecError("the model's processor refuses the chat")
        return honest(self, chats)

    monkeypatch.setattr(ImageTextToTextPipeline, "encode", encode)
    code, out, err = chat("red.png", *LAW, "--quiet", piped=b"bad\nwhat is this?\n")
    assert code == 0 and out == pipe(red(), "what is this?", seed=4, temperature=1.0).text + "\n"
    assert err == "mmspec: error: the model's processor refuses the chat\n"


def test_commands(chat, pipe) -> None:
    """Pictures, seeds, and forgetting."""
    _, out, err = chat(
        typed=["/help", "/image blue.png", "/seed 9", "colour?", "/clear", "/seed 9", "colour?", "/exit"]
    )
    blue = Image.new("RGB", (40, 30), "blue")
    answer = pipe(blue, "colour?", seed=9).text
    assert out == f"{answer}\n{answer}\n"
    for piece in ("is ready", "/help", "/image FILE", "/clear", "/seed N", "/exit", "seed 9]"):
        assert piece in err


def test_interrupts(chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at the prompt asks again, and twice ends the program; in an answer it stops the answer alone."""
    code, _, err = chat("red.png", typed=[KeyboardInterrupt, "/help", KeyboardInterrupt, KeyboardInterrupt])
    assert code == 130 and err.count("Ctrl-C again") == 2 and "interrupted" in err
    honest = ImageTextToTextPipeline.stream

    def stream(self, *arguments, **options):
        for step, chunk in enumerate(honest(self, *arguments, **options)):
            yield chunk
            if step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    whole = chat("red.png", *LAW, "--drafter", "none", "--quiet", piped=b"what is this?\n")[1]
    monkeypatch.setattr(ImageTextToTextPipeline, "stream", stream)
    before = signal.getsignal(signal.SIGINT)
    code, out, err = chat("red.png", *LAW, "--drafter", "none", "--quiet", piped=b"what is this?\nsure?\n")
    first, second = out.splitlines()
    assert code == 0 and err == "" and whole.startswith(first) and len(first) < len(whole.strip()) and second
    assert signal.getsignal(signal.SIGINT) is before
