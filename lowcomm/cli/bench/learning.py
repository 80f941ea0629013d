"""`lowcomm bench learning`: train the runs of a study."""

from __future__ import annotations

import argparse
from pathlib import Path

from lowcomm.cli.bench.arguments import tell
from lowcomm.cli.common import (
    EXIT_DONE,
    Subparsers,
    add_command,
    add_json,
    positive,
    print_table,
    write_json,
)
from lowcomm.types import Json


def add(parts: Subparsers) -> None:
    """Declare it."""
    parser = add_command(
        parts,
        "learning",
        about="train the runs of a study: islands, data-parallel, an island alone",
        example="lowcomm bench learning recipes/studies/two_islands.toml --log learning.jsonl --jobs 2",
    )
    parser.add_argument("study", metavar="STUDY.toml", type=Path, help="the runs, their settings and seeds")
    parser.add_argument(
        "--log",
        metavar="F",
        type=Path,
        required=True,
        help="a line per run; runs that are in it are not repeated",
    )
    parser.add_argument(
        "--jobs", metavar="N", type=positive, default=1, help="runs at a time, each a process (1)"
    )
    add_json(parser)


def measure(args: argparse.Namespace) -> int:
    """Measure, print a table, write the log."""
    from lowcomm.bench.learning import run_study

    def tell_line(line: dict[str, Json]) -> None:
        tell(f"{line['name']}, seed {line['seed']}: eval loss {line['eval_loss']}")

    lines = run_study(args.study, args.log, on_line=tell_line, jobs=args.jobs)
    if args.json:
        write_json(args.json, {"runs": list(lines)})
    if args.json != "-":
        rows = [(str(line["name"]), str(line["seed"]), f"{line['eval_loss']:.4f}") for line in lines]
        print_table(("run", "seed", "eval loss"), rows)
    return EXIT_DONE
