"""`lowcomm bench codecs`: bits, error and speed of all codecs."""

from __future__ import annotations

import argparse

from lowcomm.cli.bench.arguments import mib, tell
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
        "codecs",
        about="bits, error and speed of all codecs on real pseudo-gradients",
        example="lowcomm bench codecs --json codecs.json",
    )
    parser.add_argument(
        "--payload-mib", metavar="MIB", type=mib, default=64.0, help="fp32 numbers that are timed (64)"
    )
    parser.add_argument(
        "--inner-steps", metavar="N", type=positive, default=30, help="between two rounds (30)"
    )
    parser.add_argument("--rounds", metavar="N", type=positive, default=8, help="pseudo-gradients (8)")
    parser.add_argument(
        "--repeats", metavar="N", type=positive, default=7, help="of each timing; the fastest counts (7)"
    )
    add_json(parser)


def measure(args: argparse.Namespace) -> int:
    """Measure, print a table, write the log."""
    from lowcomm.bench.codecs import CodecBench, measure_codecs
    from lowcomm.bench.machine import machine_facts
    from lowcomm.config.schema import Config

    facts = machine_facts()
    result = measure_codecs(
        Config(),
        inner_steps=args.inner_steps,
        rounds=args.rounds,
        payload_mib=args.payload_mib,
        repeats=args.repeats,
        on_row=tell,
    )
    if args.json:
        write_json(args.json, {"machine": facts, **result.to_dict()})
    if args.json != "-":
        print_table(CodecBench.HEADINGS, result.rows())
        print(
            f"copy_ {result.copy_gb_s:.2f} GB/s (1x); hivemind's uniform 8-bit codec: "
            f"{result.hivemind_uniform8_gb_s / result.copy_gb_s:.3f}x, "
            f"back {result.hivemind_uniform8_decode_gb_s / result.copy_gb_s:.3f}x"
        )
    return EXIT_DONE
