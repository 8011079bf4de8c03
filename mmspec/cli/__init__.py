"""The command line: `mmspec image · speak · ask · chat · verify · bench · train · info · serve · demo`.

Exit codes, for every command: 0 done, 1 a check failed, 2 wrong input (what is wrong and what to do, on standard error,
no traceback), 130 interrupted.
"""

import sys
from typing import Annotated

import tyro

from mmspec import __version__
from mmspec.cli.ask import Ask, Chat
from mmspec.cli.bench import Bench
from mmspec.cli.common import console
from mmspec.cli.demo import Demo
from mmspec.cli.image import Image
from mmspec.cli.info import Info
from mmspec.cli.serve import Serve
from mmspec.cli.speak import Speak
from mmspec.cli.train import Train
from mmspec.cli.verify import Verify
from mmspec.errors import MmspecError

Command = (
    Annotated[Image, tyro.conf.subcommand("image")]
    | Annotated[Speak, tyro.conf.subcommand("speak")]
    | Annotated[Ask, tyro.conf.subcommand("ask")]
    | Annotated[Chat, tyro.conf.subcommand("chat")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(f"mmspec {__version__}")
        raise SystemExit(0)
    try:
        command = tyro.cli(
            Command,
            prog="mmspec",
            description="Same output, up to two and a half times sooner.",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        )
        raise SystemExit(command.run())
    except MmspecError as error:
        console.print(f"mmspec: error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        console.print("mmspec: interrupted", markup=False)
        raise SystemExit(130) from None
