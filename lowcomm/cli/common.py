"""What several commands need: options, exit codes, JSON and tables."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowcomm.errors import ConfigError, StorageError
from lowcomm.types import Json

if TYPE_CHECKING:
    from lowcomm.exchanges.swarm.identity import Gatekeeper

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

Subparsers = Any
"""What `ArgumentParser.add_subparsers` returns; its class is private to argparse."""


def add_command(commands: Subparsers, name: str, *, about: str, example: str) -> argparse.ArgumentParser:
    """A subcommand whose help ends with an example."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_set(parser: argparse.ArgumentParser) -> None:
    """`--set a.b=value`, any number of times, into `args.overrides`."""
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="replace one setting, e.g. --set shared.schedule.inner_steps=50; may be repeated",
    )


def add_profile(parser: argparse.ArgumentParser) -> None:
    """`--profile NAME|FILE` into `args.profile`."""
    parser.add_argument(
        "--profile",
        metavar="NAME|FILE",
        help="this island's engine, batches and device: a file, or the name of one in recipes/profiles/;"
        " --set wins over it",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json FILE` into `args.json`."""
    parser.add_argument(
        "--json", metavar="FILE", help="write the figures as JSON to FILE (- = standard output)"
    )


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return value


def add_access(parser: argparse.ArgumentParser) -> None:
    """`--owner ID` and `--token FILE` into `args.owner` and `args.token`, for runs by invitation."""
    parser.add_argument(
        "--owner", metavar="ID", default="", help="shared.access.owner of a run by invitation"
    )
    parser.add_argument("--token", metavar="FILE", type=Path, help="this peer's token, from `lowcomm invite`")


def make_gate(args: argparse.Namespace, run_id: str) -> Gatekeeper | None:
    """Who may be in a run, as `add_access` was answered; None = anybody.

    Raises:
        ConfigError, StorageError: the owner or the token can't be used.
    """
    if not args.owner:
        return None
    from lowcomm.exchanges.swarm.access import Gate, read_token

    return Gate(run_id, owner=args.owner, token=read_token(args.token) if args.token else "")


def check_writable(file: str | None) -> None:
    """Find out before hours of work that `--json FILE` can't be written.

    Raises:
        ConfigError: the folder isn't there or can't be written to, or FILE is a folder.
    """
    if file is None or file == "-":
        return
    path = Path(file)
    if path.is_dir():
        raise ConfigError(f"--json {file}: expected a file, got a folder")
    if not path.parent.is_dir():
        raise ConfigError(f"--json {file}: expected a file in a folder that exists; make {path.parent} first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(
            f"--json {file}: expected a file that can be written, got no permission; name another"
        )


def write_json(file: str, value: Mapping[str, Json], indent: int | None = 2) -> None:
    """Write JSON to a file, or to the standard output where `file` is "-"; `indent` None = on one line.

    Raises:
        StorageError: the file can't be written.
    """
    text = json.dumps(value, indent=indent, allow_nan=False) + "\n"
    if file == "-":
        sys.stdout.write(text)
        return
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{file}: can't be written: {error.strerror or error}") from error


def print_error(message: str) -> None:
    """One line on the standard error."""
    print("lowcomm: error: " + " ".join(message.split()), file=sys.stderr, flush=True)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table on the standard output: drawn on a terminal, tab-separated words in a pipe."""
    if not sys.stdout.isatty():
        for row in [headings, *rows] if any(headings) else rows:
            print("\t".join(row))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, show_header=any(headings))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)
