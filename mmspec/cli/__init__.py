"""The command line: `mmspec image · speak · ask · chat · verify · bench · train · info · export · serve · demo`.

Exit codes, for every command: 0 done, 1 a check failed, 2 wrong input (what is wrong and what to do, on standard error,
no traceback), 130 interrupted.
"""

import difflib
import io
import os
import re
import shutil
import sys
import textwrap
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from functools import reduce
from operator import or_
from typing import Annotated, Any, Protocol, get_args, get_type_hints

import tyro

from mmspec import __version__
from mmspec.cli.ask import Ask
from mmspec.cli.bench import Bench
from mmspec.cli.chat import Chat
from mmspec.cli.common import console
from mmspec.cli.demo import Demo
from mmspec.cli.export import Export
from mmspec.cli.image import Image
from mmspec.cli.info import Info
from mmspec.cli.serve import Serve
from mmspec.cli.speak import Speak
from mmspec.cli.train import Train
from mmspec.cli.verify import Verify
from mmspec.errors import MmspecError, unknown

COMMANDS: dict[str, type] = {
    "image": Image,
    "speak": Speak,
    "ask": Ask,
    "chat": Chat,
    "verify": Verify,
    "bench": Bench,
    "train": Train,
    "info": Info,
    "export": Export,
    "demo": Demo,
    "serve": Serve,
}

# What people type for a command, as they name it elsewhere.
SYNONYMS = {
    "draw": "image",
    "generate": "image, speak or ask",
    "tts": "speak",
    "say": "speak",
    "describe": "ask",
    "benchmark": "bench",
}

ABOUT = """\
Draws pictures, speaks and answers questions about pictures with autoregressive models, and makes them faster by
speculative decoding, with the same output.

mmspec COMMAND --help explains a command, mmspec --version says which version this is."""


# The codes of colours.
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Command(Protocol):
    """What every command is."""

    def run(self) -> int:
        """Do it, and return the exit code."""
        ...


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments == ["--version"]:
            print(f"mmspec {__version__}")
            raise SystemExit(0)
        raise SystemExit(parse(arguments).run())
    except MmspecError as error:
        console.print(f"mmspec: error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of a pipe has left, which is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except KeyboardInterrupt:
        console.print("mmspec: interrupted", markup=False)
        raise SystemExit(130) from None


def parse(arguments: list[str]) -> Command:
    """The command that the arguments ask for. Raises MmspecError for wrong ones, and SystemExit after help."""
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    if not arguments:
        raise MmspecError(f"there is no command: give one of {', '.join(COMMANDS)}; mmspec --help says more")
    name = arguments[0]
    if name in COMMANDS:
        check_options(name, arguments[1:])
        return run_parser(COMMANDS[name], f"mmspec {name}", arguments[1:])
    if name in ("-h", "--help"):
        every: list[Any] = [
            Annotated[kind, tyro.conf.subcommand(key, description=first_sentence(kind))]
            for key, kind in COMMANDS.items()
        ]
        return run_parser(reduce(or_, every), "mmspec", ["--help"], description=ABOUT)
    if name in SYNONYMS:
        raise MmspecError(f"unknown command {name!r}: {SYNONYMS[name]} is what you look for")
    raise unknown("command", name, [*COMMANDS, "--help", "--version"] if name.startswith("-") else COMMANDS)


def run_parser(kind: Any, prog: str, arguments: list[str], **options: Any) -> Any:
    """The parsed command; what the parser says of wrong arguments becomes an MmspecError of one line, and help is
    wrapped to the terminal.
    """
    errors, screen = io.StringIO(), Screen()
    try:
        with redirect_stderr(errors), redirect_stdout(screen):
            config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
            return tyro.cli(kind, prog=prog, args=arguments, config=config, **options)
    except SystemExit as end:
        if end.code in (0, None):
            print(wrap_help(screen.getvalue(), shutil.get_terminal_size().columns))
            raise
        raise MmspecError(f"{first_paragraph(errors.getvalue())}; {prog} --help says more") from None


class Screen(io.StringIO):
    """Keeps what is written for later. Has colours where standard output is a terminal and NO_COLOR is not set."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(sys.__stdout__, "encoding", None) or "ascii"

    def isatty(self) -> bool:
        return "NO_COLOR" not in os.environ and sys.__stdout__ is not None and sys.__stdout__.isatty()


def wrap_help(text: str, columns: int) -> str:
    """Help whose usage and description, which the parser does not wrap, are no wider than the terminal."""
    plain = {line: COLOUR.sub("", line) for line in text.rstrip().splitlines()}
    lines = (
        line if len(plain[line]) <= columns else textwrap.fill(plain[line], columns, break_on_hyphens=False)
        for line in text.rstrip().splitlines()
    )
    return "\n".join(lines)


def first_paragraph(box: str) -> str:
    """What stands in the parser's box up to its first rule, on one line."""
    lines = [re.sub(r"^[\W_]{0,2}\s|[│|]\s*$", "", line).strip() for line in COLOUR.sub("", box).splitlines()[1:]]
    text: list[str] = []
    for line in lines:
        if not re.search(r"\w", line):
            if text:
                break
            continue
        text.append(line)
    return re.sub(r"\s+", " ", " ".join(text)).replace("Error parsing ", "").rstrip(".") or "wrong arguments"


def check_options(command: str, arguments: list[str]) -> None:
    """Raise MmspecError, which names near matches, for an option that the command does not have."""
    known = {"--help"}
    annotations = hints(COMMANDS[command])
    for field in fields(COMMANDS[command]):
        named = next((data.name for data in annotations[field.name] if getattr(data, "name", None)), field.name)
        known.add(f"--{named.replace('_', '-')}")
    for argument in arguments:
        option = argument.partition("=")[0].replace("_", "-")
        if not option.startswith("--") or option == "--" or option in known:
            continue
        similar = difflib.get_close_matches(option, sorted(known), n=3, cutoff=0.6)
        advice = f"did you mean {' or '.join(similar)}?" if similar else f"mmspec {command} --help lists what there is"
        raise MmspecError(f"mmspec {command} has no option {option}: {advice}")


def first_sentence(kind: type) -> str:
    """What a command does, by the first paragraph of its docstring."""
    return " ".join((kind.__doc__ or "").partition("\n\n")[0].split())


def hints(kind: type) -> dict[str, tuple]:
    """What annotations say of the fields of a command beside their types."""
    return {name: get_args(hint)[1:] for name, hint in get_type_hints(kind, include_extras=True).items()}
