"""`lowcomm bench deaths`: an island that stops in the middle of a round."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from lowcomm.cli.bench.arguments import mib, seconds, tell
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
from lowcomm.types import Json

PARTS = ("participant", "leader", "bootstrap")
STOPS = ("SIGKILL", "SIGSTOP")


def add(parts: Subparsers) -> None:
    """Declare it."""
    parser = add_command(
        parts,
        "deaths",
        about="kill or freeze one of three islands in the middle of a round, and time the others",
        example="lowcomm bench deaths --json deaths.json",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="the victim in turn (all)")
    parser.add_argument("--signals", nargs="+", choices=STOPS, default=STOPS, help="how it stops (both)")
    parser.add_argument(
        "--payload-mib", metavar="MIB", type=mib, default=32.0, help="MiB of a pseudo-gradient (32)"
    )
    parser.add_argument(
        "--warm-rounds", metavar="N", type=positive, default=12, help="rounds before the fault (12)"
    )
    parser.add_argument(
        "--deadline-s", metavar="S", type=seconds, default=5.0, help="deadline of a round (5)"
    )
    add_json(parser)


def measure(args: argparse.Namespace) -> int:
    """Measure, print a table, write the log; exit code 1 where steps were lost or states differ."""
    from lowcomm.bench.deaths import Death, DeathsBench, measure_death
    from lowcomm.bench.machine import machine_facts

    facts = machine_facts()
    bench = DeathsBench(
        payload_mib=args.payload_mib, warm_rounds=args.warm_rounds, deadline_s=args.deadline_s
    )
    deaths: list[Death] = []
    for stop in args.signals:
        for part in args.parts:
            deaths.append(measure_death(bench, part, stop))
            tell(f"{part}, {stop}: the others committed after {deaths[-1].recovered_s:.2f} s")
    if args.json:
        runs: list[Json] = [death.to_dict() for death in deaths]
        write_json(args.json, {"machine": facts, "deaths": {"bench": asdict(bench), "deaths": runs}})
    if args.json != "-":
        print_table(Death.HEADINGS, [death.row() for death in deaths])
    if not all(death.equal and death.lost_steps == 0 for death in deaths):
        print_error("expected equal digests and no lost inner step on the others, see the table")
        return EXIT_FAILED
    return EXIT_DONE
