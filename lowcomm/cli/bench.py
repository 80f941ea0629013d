"""`lowcomm bench ...`: measurements that anyone can repeat."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lowcomm.cli.common import (
    EXIT_DONE,
    Subparsers,
    add_command,
    add_json,
    check_writable,
    print_table,
    write_json,
)
from lowcomm.types import Json


def add_parser(commands: Subparsers) -> None:
    """Declare the command and its parts."""
    parser = add_command(
        commands,
        "bench",
        about="measure learning, rounds and overhead",
        example="lowcomm bench learning recipes/studies/learning.toml --log learning.jsonl",
    )
    parts = parser.add_subparsers(dest="bench", metavar="PART", required=True)
    learning = add_command(
        parts,
        "learning",
        about="train the runs of a study: islands, data-parallel, an island alone",
        example="lowcomm bench learning recipes/studies/learning.toml --log learning.jsonl",
    )
    learning.add_argument("study", metavar="STUDY.toml", type=Path, help="the runs, their settings and seeds")
    learning.add_argument(
        "--log",
        metavar="F",
        type=Path,
        required=True,
        help="a line per run; runs that are in it are not repeated",
    )
    add_json(learning)


def run(args: argparse.Namespace) -> int:
    """Measure, print a table."""
    check_writable(args.json)
    from lowcomm.bench.learning import run_study

    def tell(line: dict[str, Json]) -> None:
        print(f"{line['name']}, seed {line['seed']}: eval loss {line['eval_loss']}", file=sys.stderr)

    lines = run_study(args.study, args.log, on_line=tell)
    if args.json:
        write_json(args.json, {"runs": list(lines)})
    if args.json != "-":
        print_table(
            ("run", "seed", "eval loss"),
            [(str(x["name"]), str(x["seed"]), f"{x['eval_loss']:.4f}") for x in lines],
        )
    return EXIT_DONE
