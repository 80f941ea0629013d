"""`lowcomm bench overhead`: what `OuterLoop` costs between rounds."""

from __future__ import annotations

import argparse
import contextlib
import os
from dataclasses import replace

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
        "overhead",
        about="time what OuterLoop costs in the inner steps between rounds",
        example="lowcomm bench overhead --json overhead.json\n"
        "         torchrun --standalone --nproc-per-node 2 -m lowcomm bench overhead --engine fsdp2",
    )
    parser.add_argument(
        "--engine",
        choices=("plain", "ddp", "fsdp2", "deepspeed"),
        default="plain",
        help="the island's engine; all but plain under torchrun (plain)",
    )
    parser.add_argument(
        "--exchange", choices=("loopback", "swarm"), default="loopback", help="the network (loopback)"
    )
    parser.add_argument("--blocks", metavar="N", type=positive, default=30, help="pairs of blocks (30)")
    parser.add_argument("--steps", metavar="N", type=positive, default=10, help="inner steps in each (10)")
    parser.add_argument(
        "--pairs", metavar="N", type=positive, default=300, help="pairs of neighbouring steps (300)"
    )
    add_json(parser)


def measure(args: argparse.Namespace) -> int:
    """Measure, print a table, write the log."""
    import torch

    from lowcomm.bench.machine import machine_facts
    from lowcomm.bench.overhead import measure_overhead
    from lowcomm.config.schema import Config, IslandConfig
    from lowcomm.islands.group import process_group

    facts = machine_facts()
    config = Config(island=IslandConfig(engine=args.engine))
    inner = replace(config.shared.inner, name="adamw", lr=config.shared.inner.adamw_lr)
    config = replace(config, shared=replace(config.shared, inner=inner))  # every engine has AdamW
    with contextlib.ExitStack() as stack:
        if args.engine != "plain" and "RANK" in os.environ:  # else the island says that it needs torchrun
            stack.enter_context(process_group(torch.device("cpu")))
        result = measure_overhead(
            config, exchange=args.exchange, blocks=args.blocks, steps=args.steps, pairs=args.pairs
        )
    if os.environ.get("RANK", "0") != "0":
        return EXIT_DONE
    if args.json:
        write_json(args.json, {"machine": facts, "overhead": result.to_dict()})
    if args.json != "-":
        low, high = result.difference_interval_percent
        near_low, near_high = result.neighbours_interval_percent
        cpu_low, cpu_high = result.cpu_interval_percent
        rows = [
            ("engine, ranks", f"{result.engine}, {result.ranks}"),
            ("parameters", f"{result.parameters:,}"),
            ("bare inner step, median", f"{1e3 * result.step_s:.2f} ms"),
            ("with OuterLoop.step, median", f"{1e3 * result.step_with_s:.2f} ms"),
            (
                f"difference, median of {result.blocks} pairs of blocks",
                f"{result.difference_percent:.2f} % (95 % interval {low:.2f} to {high:.2f})",
            ),
            (
                f"difference of neighbouring steps, median of {result.pairs} pairs",
                f"{result.neighbours_percent:.2f} % (95 % interval {near_low:.2f} to {near_high:.2f})",
            ),
            (
                f"the same in processor time, of {1e3 * result.cpu_s:.2f} ms",
                f"{result.cpu_difference_percent:.2f} % (95 % interval {cpu_low:.2f} to {cpu_high:.2f})",
            ),
            (
                "OuterLoop.step itself, median",
                f"{1e6 * result.call_s:.0f} us = {result.call_percent:.3f} % of a step",
            ),
            (
                "processor time of OuterLoop's own threads in a step",
                f"{1e6 * result.threads_s:.0f} us = {result.threads_percent:.3f} %",
            ),
        ]
        print_table(("", ""), rows)
    return EXIT_DONE
