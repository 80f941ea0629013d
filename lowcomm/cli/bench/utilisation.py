"""`lowcomm bench utilisation`: what part of the time an island trains."""

from __future__ import annotations

import argparse
from typing import Literal

from lowcomm import codecs
from lowcomm.cli.bench.arguments import add_joining, seconds, site_of
from lowcomm.cli.common import (
    EXIT_DONE,
    Subparsers,
    add_command,
    add_json,
    positive,
    print_table,
    write_json,
)


def add(parts: Subparsers) -> None:
    """Declare it."""
    parser = add_command(
        parts,
        "utilisation",
        about="measure what part of the time an island trains, a timed wait in place of the compute",
        example="lowcomm bench utilisation --run-id b --islands 2 --address-file A --step-s 0.1 --steps 300 "
        "--inner-steps 50 --num-fragments 5 --delay 5 --codec int4 --mode streaming --json F",
    )
    parser.add_argument("--step-s", metavar="S", type=seconds, default=0.1, help="one inner step (0.1)")
    parser.add_argument("--steps", metavar="N", type=positive, default=300, help="inner steps (300)")
    parser.add_argument("--inner-steps", metavar="H", type=positive, default=50, help="between rounds (50)")
    parser.add_argument("--num-fragments", metavar="P", type=positive, default=1, help="fragments (1)")
    parser.add_argument(
        "--delay", metavar="D", type=_delay, default=0, help="steps of room for a round, or auto (0)"
    )
    parser.add_argument("--codec", choices=codecs.NAMES, default="fp32", help="how they are encoded (fp32)")
    parser.add_argument(
        "--mode",
        choices=("blocking", "streaming"),
        default="streaming",
        help="blocking = one fragment, no delay, whatever is given (streaming)",
    )
    parser.add_argument("--listen", metavar="ADDR", help="multiaddr to listen on (all interfaces)")
    parser.add_argument(
        "--deadline-s", metavar="S", type=seconds, default=120.0, help="longest wait for an island (120)"
    )
    add_joining(parser)
    add_json(parser)


def measure(args: argparse.Namespace) -> int:
    """Measure, print a table, write the log."""
    from lowcomm.algorithms.schedule import Schedule
    from lowcomm.bench.machine import machine_facts
    from lowcomm.bench.utilisation import Work, measure_utilisation

    streaming = args.mode == "streaming"
    schedule = Schedule(
        inner_steps=args.inner_steps,
        num_fragments=args.num_fragments if streaming else 1,
        delay=args.delay if streaming else 0,
    )
    facts = machine_facts()
    work = Work(step_s=args.step_s, steps=args.steps, schedule=schedule)
    result = measure_utilisation(site_of(args), work)
    if args.json:
        write_json(args.json, {"machine": facts, **result})
    if args.json != "-":
        print_table(("", ""), [(key, str(value)) for key, value in result.items()])
    return EXIT_DONE


def _delay(text: str) -> int | Literal["auto"]:
    return "auto" if text == "auto" else int(text)
