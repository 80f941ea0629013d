"""`lowcomm provenance RUN`: the data and the islands that a model is made of."""

from __future__ import annotations

import argparse
from pathlib import Path

from lowcomm.cli.common import (
    EXIT_DONE,
    EXIT_FAILED,
    Subparsers,
    add_command,
    add_json,
    check_writable,
    print_error,
    write_json,
)


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "provenance",
        about="say which data and islands a model is made of, checked against ledger and manifest",
        example="lowcomm provenance runs/demo/island-0",
    )
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="an island's run folder")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print it; exit code 1 where ledger or manifest are not what they should be."""
    check_writable(args.json)
    from lowcomm.training.provenance import provenance_of

    found = provenance_of(args.run_dir)
    if args.json:
        write_json(args.json, found.to_dict())
    if args.json != "-":
        print("\n".join(found.lines()))
    if not found.valid:
        print_error(found.problem)
    return EXIT_DONE if found.valid else EXIT_FAILED
