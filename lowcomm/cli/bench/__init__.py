"""`lowcomm bench ...`: measurements that anyone can repeat, one module each."""

from __future__ import annotations

import argparse
from typing import Protocol

from lowcomm.cli.bench import (
    churn,
    codecs,
    deaths,
    donors,
    engines,
    learning,
    overhead,
    round,
    snapshot,
    speeds,
    utilisation,
)
from lowcomm.cli.common import Subparsers, add_command, check_writable


class Part(Protocol):
    """What each module has."""

    def add(self, parts: Subparsers) -> None:
        """Declare it."""

    def measure(self, args: argparse.Namespace) -> int:
        """Measure, print a table, write the log."""


PARTS: dict[str, Part] = {
    "codecs": codecs,
    "round": round,
    "utilisation": utilisation,
    "overhead": overhead,
    "speeds": speeds,
    "engines": engines,
    "snapshot": snapshot,
    "donors": donors,
    "deaths": deaths,
    "churn": churn,
    "learning": learning,
}


def add_parser(commands: Subparsers) -> None:
    """Declare the command and its parts."""
    parser = add_command(
        commands,
        "bench",
        about="measure codecs, rounds, overhead, speeds, engines, snapshots, deaths, churn, and learning",
        example="lowcomm bench round --peers 2,4 --payload-mb 0,100 --stock",
    )
    parts = parser.add_subparsers(dest="bench", metavar="PART", required=True)
    for part in PARTS.values():
        part.add(parts)


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, write the log."""
    check_writable(args.json)
    return PARTS[args.bench].measure(args)
