"""`lowcomm bench engines`: islands of unlike engines against plain ones."""

from __future__ import annotations

import argparse

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


def add(parts: Subparsers) -> None:
    """Declare it."""
    parser = add_command(
        parts,
        "engines",
        about="a plain, an FSDP2 and a ZeRO-3 island in one run, against three plain ones on the same data",
        example="lowcomm bench engines --json engines.json",
    )
    parser.add_argument("--outer-steps", metavar="N", type=positive, default=20, help="of each run (20)")
    parser.add_argument("--inner-steps", metavar="H", type=positive, default=10, help="per outer step (10)")
    parser.add_argument(
        "--seeds", metavar="N", type=positive, default=3, help="of the plain runs, for their spread (3)"
    )
    add_json(parser)


def measure(args: argparse.Namespace) -> int:
    """Measure, print a table, write the log."""
    from lowcomm.bench.engines import EngineBench, EngineRun, Engines, measure_engines
    from lowcomm.bench.machine import machine_facts

    def tell_run(name: str, run: EngineRun) -> None:
        tell(f"{name}: loss {run.losses[-1]:.4f}, digests equal after {run.equal_digests} outer steps")

    facts = machine_facts()
    bench = EngineBench(
        outer_steps=args.outer_steps, inner_steps=args.inner_steps, seeds=tuple(range(args.seeds))
    )
    result = measure_engines(bench, on_run=tell_run)
    if args.json:
        write_json(args.json, {"machine": facts, "engines": result.to_dict()})
    if args.json != "-":
        print_table(Engines.HEADINGS, result.rows())
        equal = f"{result.unlike.equal_digests} of {bench.outer_steps}"
        print(f"digests equal on all islands after {equal} outer steps")
        print(f"the last loss over {args.seeds} seeds of plain islands: {result.spread:.1e} apart")
    return EXIT_DONE
