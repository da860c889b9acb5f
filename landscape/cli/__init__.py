"""The command line: `landscape train`, `landscape hessian`, `landscape surface`, ..."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from landscape.cli.demo import Demo
from landscape.cli.draw import Inspect, Plot, Report
from landscape.cli.measure import Hessian, Sharpness, Surface
from landscape.cli.train import Trace, Train

Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Hessian, tyro.conf.subcommand("hessian")]
    | Annotated[Sharpness, tyro.conf.subcommand("sharpness")]
    | Annotated[Surface, tyro.conf.subcommand("surface")]
    | Annotated[Trace, tyro.conf.subcommand("trace")]
    | Annotated[Plot, tyro.conf.subcommand("plot")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
)

DESCRIPTION = """Train sharp and flat minima, measure them and draw them. `landscape COMMAND --help` explains each command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on stderr and exit code 2 (LANDSCAPE_DEBUG=1 shows the traceback)."""
    try:
        command = _parsed(arguments)
        command.run()
    except KeyboardInterrupt:
        print("landscape: interrupted; the same command goes on from what was saved", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("LANDSCAPE_DEBUG"):
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, ValueError | OSError):  # from a model or data set of the user's own, or from us
            said = f"{type(error).__name__}: {said[:500]} (LANDSCAPE_DEBUG=1 shows where)"
        print(f"landscape: {said}", file=sys.stderr)
        return 2
    return 0


def _parsed(arguments: Sequence[str] | None) -> Command:
    """Parse the command line; what tyro says of a mistake, over several framed lines, is said in one."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(Command, prog="landscape", description=DESCRIPTION, args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as ended:
        if ended.code:
            raise ValueError(_in_one_line(said.getvalue())) from ended
        raise


def _in_one_line(framed: str) -> str:
    """Return the text of a framed message, up to the rule under which the help is pointed to."""
    lines: list[str] = []
    for line in framed.splitlines()[1:]:
        text = line.strip("│╭╮╰╯─ ")
        if not text and lines and "──" in line:
            break
        lines.append(text)
    text = re.sub(r"^Error parsing (__\S+: )?", "", " ".join(filter(None, lines)))
    return f"{text}; `landscape --help` and `landscape COMMAND --help` explain what there is"
