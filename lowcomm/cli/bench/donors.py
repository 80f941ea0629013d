"""`lowcomm bench donors`: what a snapshot costs those who hand it over."""

from __future__ import annotations

import argparse

from lowcomm.cli.bench.arguments import mib, seconds
from lowcomm.cli.common import (
    EXIT_DONE,
    EXIT_FAILED,
    Subparsers,
    add_command,
    add_json,
    print_error,
    print_table,
    write_json,
)
from lowcomm.errors import ConfigError


def add(parts: Subparsers) -> None:
    """Declare it."""
    parser = add_command(
        parts,
        "donors",
        about="time the inner steps of two islands that train, without and while a third takes a snapshot",
        example="lowcomm bench donors --payload-mib 200 --json donors.json",
    )
    parser.add_argument(
        "--payload-mib", metavar="MIB", type=mib, default=200.0, help="MiB of the state (200)"
    )
    parser.add_argument(
        "--mbit-s", metavar="RATE", type=float, default=100.0, help="upload of each (100; 0 = unlimited)"
    )
    parser.add_argument(
        "--before-s", metavar="S", type=seconds, default=10.0, help="timed before the third comes (10)"
    )
    add_json(parser)


def measure(args: argparse.Namespace) -> int:
    """Measure, print a table, write the log; exit code 1 where the joiner has another state."""
    if not args.mbit_s >= 0.0:
        raise ConfigError(f"--mbit-s: expected at least 0, got {args.mbit_s:g}")
    from lowcomm.bench.donors import DonorBench, Donors, measure_donors
    from lowcomm.bench.machine import machine_facts

    facts = machine_facts()
    bench = DonorBench(payload_mib=args.payload_mib, mbit_s=args.mbit_s, before_s=args.before_s)
    donors = measure_donors(bench)
    if args.json:
        write_json(args.json, {"machine": facts, "donors": donors.to_dict()})
    if args.json != "-":
        print_table(Donors.HEADINGS, [donors.row()])
    if not donors.equal:
        print_error("expected the joiner to have the donors' state, got another digest")
        return EXIT_FAILED
    return EXIT_DONE
