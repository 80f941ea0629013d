"""`lowcomm bench speeds`: islands of unlike speed."""

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
from lowcomm.errors import ConfigError


def add(parts: Subparsers) -> None:
    """Declare it."""
    parser = add_command(
        parts,
        "speeds",
        about="three islands at 1x, 2x, 4x speed: idle share and loss with fixed and matched inner steps",
        example="lowcomm bench speeds --json speeds.json",
    )
    parser.add_argument(
        "--steps-s",
        metavar="S,S,S",
        type=_steps_s,
        default=(0.15, 0.3, 0.6),
        help="seconds of an inner step of each island (0.15,0.3,0.6)",
    )
    parser.add_argument("--inner-steps", metavar="H", type=positive, default=24, help="of the fastest (24)")
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=positive,
        default=64,
        help="of the matched run; fixed trains equal tokens (64)",
    )
    parser.add_argument(
        "--slow-rounds", metavar="N", type=positive, default=12, help="of the run in which one slows (12)"
    )
    parser.add_argument(
        "--slow-island", metavar="I", type=int, default=0, help="which island slows down 4 times (0)"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of weights and data (0)")
    add_json(parser)


def measure(args: argparse.Namespace) -> int:
    """Measure, print a table, write the log."""
    from lowcomm.bench.machine import machine_facts
    from lowcomm.bench.speeds import SpeedBench, SpeedRun, Speeds, measure_speeds

    if not 0 <= args.slow_island < len(args.steps_s):
        raise ConfigError(
            f"--slow-island: expected an island from 0 to {len(args.steps_s) - 1}, got {args.slow_island}"
        )
    if args.slow_rounds < 6:
        raise ConfigError(
            f"--slow-rounds: expected at least 6, so that rounds follow the slowdown, got {args.slow_rounds}"
        )

    def tell_run(name: str, run: SpeedRun) -> None:
        tell(f"{name}: {run.wall_s:.0f} s, idle {', '.join(f'{share:.1%}' for share in run.idle)}")
        for reason in run.failures:
            tell(f"{name}: a round was not committed: {reason}")

    facts = machine_facts()
    bench = SpeedBench(
        steps_s=args.steps_s,
        inner_steps=args.inner_steps,
        rounds=args.rounds,
        slow_rounds=args.slow_rounds,
        slow_island=args.slow_island,
        seed=args.seed,
    )
    result = measure_speeds(bench, on_run=tell_run)
    if args.json:
        write_json(args.json, {"machine": facts, "speeds": result.to_dict()})
    if args.json != "-":
        print_table(Speeds.HEADINGS, result.rows())
        seconds, by_time = result.equal_time
        tokens, by_tokens = result.equal_tokens
        for when, by_mode in ((f"{seconds:.0f} s", by_time), (f"{tokens:,} tokens", by_tokens)):
            change = by_mode["matched"] / by_mode["fixed"] - 1
            fixed, matched = (f"{by_mode[mode]:.4f}" for mode in ("fixed", "matched"))
            print(f"loss after {when}: fixed {fixed}, matched {matched} ({change:+.2%})")
        print(f"rounds until a slowdown of {bench.slow_by:g}x is followed: {result.followed_after}")
    return EXIT_DONE


def _steps_s(text: str) -> tuple[float, ...]:
    steps_s = tuple(float(part) for part in text.split(","))
    if len(steps_s) < 2 or not all(0 < step_s < 1e3 for step_s in steps_s):
        raise argparse.ArgumentTypeError(f"expected seconds above 0 of at least 2 islands, got {text}")
    return steps_s
