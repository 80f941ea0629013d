"""`lowcomm report RUN...`: figures and plots of one or more runs."""

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


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "report",
        about="draw figures and plots of one or more runs",
        example="lowcomm report runs/demo",
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="an island's run folder, or one that holds island-0, ...; islands of one run are put together",
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="the page (default: report.html in the first RUN)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Write the page, print the tables."""
    check_writable(args.json)
    from lowcomm.report import find_runs, run_figures, write_page
    from lowcomm.report.table import ISLAND_HEADINGS, figure_rows, island_rows

    runs = find_runs(args.runs)
    page = args.out if args.out is not None else runs[0].path / "report.html"
    write_page(runs, page)
    figures = [run_figures(run) for run in runs]
    if args.json:
        write_json(args.json, {"runs": [one.to_dict() for one in figures]})
    if args.json != "-":
        for run, one in zip(runs, figures, strict=True):
            print_table(
                ("", ""), figure_rows(one), title=f"run {run.run_id} in {', '.join(map(str, run.paths))}"
            )
            print_table(ISLAND_HEADINGS, island_rows(run, one))
    print(f"lowcomm: the report is in {page}", file=sys.stderr)
    return EXIT_DONE
