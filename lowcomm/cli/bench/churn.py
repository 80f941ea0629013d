"""`lowcomm bench churn`: islands that come and go."""

from __future__ import annotations

import argparse

from lowcomm.cli.bench.arguments import seconds, tell
from lowcomm.cli.common import (
    EXIT_DONE,
    EXIT_FAILED,
    Subparsers,
    add_command,
    add_json,
    positive,
    print_error,
    print_table,
    write_json,
)
from lowcomm.errors import ConfigError


def add(parts: Subparsers) -> None:
    """Declare it."""
    parser = add_command(
        parts,
        "churn",
        about="let islands join and leave all the time, and see who takes part in each round",
        example="lowcomm bench churn --events 200 --json churn.json",
    )
    parser.add_argument(
        "--events", metavar="N", type=positive, default=200, help="joins and leaves together (200)"
    )
    parser.add_argument("--islands", metavar="N", type=positive, default=5, help="at most at a time (5)")
    parser.add_argument(
        "--every-s", metavar="S", type=seconds, default=1.5, help="between two of them, at least (1.5)"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="who leaves, and how (0)")
    add_json(parser)


def measure(args: argparse.Namespace) -> int:
    """Measure, print tables, write the log; exit code 1 where states differ."""
    if args.islands < 5:
        raise ConfigError(
            f"--islands: expected at least 5, so that three stay when one leaves and one comes, "
            f"got {args.islands}"
        )
    from lowcomm.bench.churn import measure_churn
    from lowcomm.bench.churn_figures import Churn, ChurnBench
    from lowcomm.bench.machine import machine_facts

    facts = machine_facts()
    bench = ChurnBench(events=args.events, islands=args.islands, every_s=args.every_s, seed=args.seed)
    churn = measure_churn(bench, on_event=tell)
    if args.json:
        write_json(args.json, {"machine": facts, "churn": churn.to_dict()})
    if args.json != "-":
        print_table(Churn.HEADINGS, churn.rows())
    if not churn.equal:
        print_error("expected one history and equal states on all islands, got others")
        return EXIT_FAILED
    return EXIT_DONE
