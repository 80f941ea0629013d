"""`lowcomm bench ...`: measurements that anyone can repeat."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lowcomm import codecs
from lowcomm.cli.common import (
    EXIT_DONE,
    Subparsers,
    add_command,
    add_json,
    check_writable,
    positive,
    print_table,
    write_json,
)
from lowcomm.errors import ConfigError
from lowcomm.types import Json

if TYPE_CHECKING:
    from lowcomm.bench.site import Site

ALL_INTERFACES = "/ip4/0.0.0.0/tcp/0"
LOOPBACK = "/ip4/127.0.0.1/tcp/0"


def add_parser(commands: Subparsers) -> None:
    """Declare the command and its parts."""
    parser = add_command(
        commands,
        "bench",
        about="measure codecs, round time, overhead, islands of unlike speed, and learning",
        example="lowcomm bench round --peers 2,4 --payload-mb 0,100 --stock",
    )
    parts = parser.add_subparsers(dest="bench", metavar="PART", required=True)
    _add_codecs(parts)
    _add_round(parts)
    _add_utilisation(parts)
    _add_overhead(parts)
    _add_speeds(parts)
    _add_learning(parts)


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, write the log."""
    check_writable(args.json)
    measure = {
        "codecs": _codecs,
        "round": _round,
        "utilisation": _utilisation,
        "overhead": _overhead,
        "speeds": _speeds,
        "learning": _learning,
    }[args.bench]
    return measure(args)


def _add_codecs(parts: Subparsers) -> None:
    parser = add_command(
        parts,
        "codecs",
        about="bits, error and speed of all codecs on real pseudo-gradients",
        example="lowcomm bench codecs --json codecs.json",
    )
    parser.add_argument(
        "--payload-mib", metavar="MIB", type=_mib, default=64.0, help="fp32 numbers that are timed (64)"
    )
    parser.add_argument(
        "--inner-steps", metavar="N", type=positive, default=30, help="between two rounds (30)"
    )
    parser.add_argument("--rounds", metavar="N", type=positive, default=8, help="pseudo-gradients (8)")
    parser.add_argument(
        "--repeats", metavar="N", type=positive, default=7, help="of each timing; the fastest counts (7)"
    )
    add_json(parser)


def _add_round(parts: Subparsers) -> None:
    parser = add_command(
        parts,
        "round",
        about="time rounds over the real swarm: processes of this machine, or one island of several hosts",
        example="lowcomm bench round --peers 2,4,8 --payload-mb 0 --rounds 20 --stock --json rounds.json",
    )
    parser.add_argument(
        "--peers", metavar="N,N", type=_counts, default=(2,), help="numbers of peers (default 2)"
    )
    parser.add_argument(
        "--payload-mb",
        metavar="MB,MB",
        type=_sizes,
        default=(0.0,),
        help="megabytes of fp32 numbers before encoding; 0 = one number, which leaves the round's forming",
    )
    parser.add_argument("--rounds", metavar="N", type=positive, default=20, help="rounds that count (20)")
    parser.add_argument("--warmup", metavar="N", type=positive, default=2, help="rounds before them (2)")
    parser.add_argument("--codec", choices=codecs.NAMES, default="fp32", help="how they are encoded (fp32)")
    parser.add_argument(
        "--stock", action="store_true", help="measure stock hivemind averaging beside it, uncompressed"
    )
    parser.add_argument(
        "--listen",
        metavar="ADDR",
        help="multiaddr of a peer, {number} = which one (loopback; all interfaces with --run-id)",
    )
    parser.add_argument(
        "--prefix",
        metavar="COMMAND",
        default="",
        help="put before the command of each peer, e.g. 'ip netns exec site{number}'",
    )
    parser.add_argument(
        "--deadline-s",
        metavar="S",
        type=_seconds,
        default=120.0,
        help="longest wait of and for a peer (120)",
    )
    _add_joining(parser)
    add_json(parser)


def _add_joining(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("one island on each host")
    group.add_argument("--run-id", metavar="ID", help="be one island of this run; equal on all hosts")
    group.add_argument("--islands", metavar="N", type=positive, help="islands of the run, this one included")
    group.add_argument(
        "--initial-peers",
        metavar="ADDR",
        nargs="+",
        default=[],
        help="what the first island wrote to its address file; none on the first",
    )
    group.add_argument("--address-file", metavar="F", type=Path, help="write this island's address to F")
    group.add_argument(
        "--payload-mib", metavar="MIB", type=_seconds, default=25.0, help="MiB of fp32 before encoding (25)"
    )


def _site(args: argparse.Namespace) -> Site:
    from lowcomm.bench.site import Site

    if not args.run_id or args.islands is None or args.islands < 2:
        raise ConfigError("bench: expected --run-id ID and --islands N of at least 2, equal on all hosts")
    return Site(
        run_id=args.run_id,
        islands=args.islands,
        initial_peers=tuple(args.initial_peers),
        address_file=args.address_file,
        listen=args.listen or ALL_INTERFACES,
        payload_mib=args.payload_mib,
        codec=args.codec,
        deadline_s=args.deadline_s,
    )


def _add_utilisation(parts: Subparsers) -> None:
    parser = add_command(
        parts,
        "utilisation",
        about="measure what part of the time an island trains, a timed wait in place of the compute",
        example="lowcomm bench utilisation --run-id b --islands 2 --address-file A --step-s 0.1 --steps 300 "
        "--inner-steps 50 --num-fragments 5 --delay 5 --codec int4 --mode streaming --json F",
    )
    parser.add_argument("--step-s", metavar="S", type=_seconds, default=0.1, help="one inner step (0.1)")
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
        "--deadline-s", metavar="S", type=_seconds, default=120.0, help="longest wait for an island (120)"
    )
    _add_joining(parser)
    add_json(parser)


def _add_overhead(parts: Subparsers) -> None:
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
    add_json(parser)


def _add_speeds(parts: Subparsers) -> None:
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
    parser.add_argument("--inner-steps", metavar="H", type=positive, default=48, help="of the fastest (48)")
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=positive,
        default=40,
        help="of the matched run; fixed trains equal tokens (40)",
    )
    parser.add_argument(
        "--slow-rounds", metavar="N", type=positive, default=12, help="of the run in which one slows (12)"
    )
    parser.add_argument(
        "--slow-island", metavar="I", type=int, default=0, help="which island slows down 4 times (0)"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of weights and data (0)")
    add_json(parser)


def _add_learning(parts: Subparsers) -> None:
    parser = add_command(
        parts,
        "learning",
        about="train the runs of a study: islands, data-parallel, an island alone",
        example="lowcomm bench learning recipes/studies/two_islands.toml --log learning.jsonl --jobs 2",
    )
    parser.add_argument("study", metavar="STUDY.toml", type=Path, help="the runs, their settings and seeds")
    parser.add_argument(
        "--log",
        metavar="F",
        type=Path,
        required=True,
        help="a line per run; runs that are in it are not repeated",
    )
    parser.add_argument(
        "--jobs", metavar="N", type=positive, default=1, help="runs at a time, each a process (1)"
    )
    add_json(parser)


def _site_round(args: argparse.Namespace) -> int:
    from lowcomm.bench.machine import machine_facts
    from lowcomm.bench.site_rounds import measure_site_rounds

    facts = machine_facts()
    result = measure_site_rounds(_site(args), args.rounds)
    if args.json:
        write_json(args.json, {"machine": facts, **result})
    if args.json != "-":
        rounds = result["rounds"]
        assert isinstance(rounds, list)
        keys = ("seconds", "bytes_sent", "bytes_received", "committed", "digest")
        print_table(keys, [tuple(str(x[key]) for key in keys) for x in rounds if isinstance(x, dict)])
    return EXIT_DONE


def _delay(text: str) -> int | Literal["auto"]:
    return "auto" if text == "auto" else int(text)


def _utilisation(args: argparse.Namespace) -> int:
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
    result = measure_utilisation(_site(args), work)
    if args.json:
        write_json(args.json, {"machine": facts, **result})
    if args.json != "-":
        print_table(("", ""), [(key, str(value)) for key, value in result.items()])
    return EXIT_DONE


def _codecs(args: argparse.Namespace) -> int:
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
        on_row=_tell,
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


def _round(args: argparse.Namespace) -> int:
    if args.run_id is not None:
        if args.stock or args.prefix:
            raise ConfigError(
                "--run-id is one island of several hosts; --stock and --prefix start processes here"
            )
        return _site_round(args)
    if args.islands is not None or args.initial_peers or args.address_file:
        raise ConfigError("--islands, --initial-peers and --address-file: expected --run-id ID with them")
    from lowcomm.bench.machine import machine_facts
    from lowcomm.bench.rounds import Bench, Rounds, measure_hivemind, measure_rounds

    def tell_trial(seconds: float, complete: int, tried: int) -> None:
        _tell(f"stock hivemind, matchmaking {seconds:g} s: {complete} of {tried} trial rounds whole")

    facts = machine_facts()
    results: list[Rounds] = []
    for payload_mb in args.payload_mb:
        for peers in args.peers:
            bench = Bench(
                peers=peers,
                payload_mb=payload_mb,
                rounds=args.rounds,
                warmup=args.warmup,
                codec=args.codec,
                listen=args.listen or LOOPBACK,
                prefix=tuple(args.prefix.split()),
                deadline_s=args.deadline_s,
            )
            results.append(measure_rounds(bench))
            _tell(f"lowcomm, {peers} peers, {payload_mb:g} MB: median {results[-1].median_s:.3f} s")
            if args.stock:
                results.append(measure_hivemind(bench, on_trial=tell_trial))
                _tell(f"hivemind, {peers} peers, {payload_mb:g} MB: median {results[-1].median_s:.3f} s")
    if args.json:
        write_json(args.json, {"machine": facts, "rounds": [result.to_dict() for result in results]})
    if args.json != "-":
        print_table(Rounds.HEADINGS, [result.row() for result in results])
    return EXIT_DONE


def _overhead(args: argparse.Namespace) -> int:
    import torch

    from lowcomm.bench.machine import machine_facts
    from lowcomm.bench.overhead import measure_overhead
    from lowcomm.config.schema import Config, IslandConfig
    from lowcomm.islands.group import process_group

    facts = machine_facts()
    config = Config(island=IslandConfig(engine=args.engine))
    if args.engine == "deepspeed":
        inner = replace(config.shared.inner, name="adamw", lr=config.shared.inner.adamw_lr)
        config = replace(config, shared=replace(config.shared, inner=inner))
    with contextlib.ExitStack() as stack:
        if args.engine != "plain" and "RANK" in os.environ:  # else the island says that it needs torchrun
            stack.enter_context(process_group(torch.device("cpu")))
        result = measure_overhead(config, exchange=args.exchange, blocks=args.blocks, steps=args.steps)
    if os.environ.get("RANK", "0") != "0":
        return EXIT_DONE
    if args.json:
        write_json(args.json, {"machine": facts, "overhead": result.to_dict()})
    if args.json != "-":
        low, high = result.difference_interval_percent
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


def _speeds(args: argparse.Namespace) -> int:
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

    def tell(name: str, run: SpeedRun) -> None:
        _tell(f"{name}: {run.wall_s:.0f} s, idle {', '.join(f'{share:.1%}' for share in run.idle)}")
        for reason in run.failures:
            _tell(f"{name}: a round was not committed: {reason}")

    facts = machine_facts()
    bench = SpeedBench(
        steps_s=args.steps_s,
        inner_steps=args.inner_steps,
        rounds=args.rounds,
        slow_rounds=args.slow_rounds,
        slow_island=args.slow_island,
        seed=args.seed,
    )
    result = measure_speeds(bench, on_run=tell)
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


def _learning(args: argparse.Namespace) -> int:
    from lowcomm.bench.learning import run_study

    def tell(line: dict[str, Json]) -> None:
        _tell(f"{line['name']}, seed {line['seed']}: eval loss {line['eval_loss']}")

    lines = run_study(args.study, args.log, on_line=tell, jobs=args.jobs)
    if args.json:
        write_json(args.json, {"runs": list(lines)})
    if args.json != "-":
        rows = [(str(line["name"]), str(line["seed"]), f"{line['eval_loss']:.4f}") for line in lines]
        print_table(("run", "seed", "eval loss"), rows)
    return EXIT_DONE


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(part) for part in text.split(","))
    if min(counts) < 2:
        raise argparse.ArgumentTypeError(f"expected numbers of at least 2, got {text}")
    return counts


def _sizes(text: str) -> tuple[float, ...]:
    sizes = tuple(float(part) for part in text.split(","))
    if not all(0 <= size < 1e6 for size in sizes):
        raise argparse.ArgumentTypeError(f"expected megabytes of at least 0, got {text}")
    return sizes


def _steps_s(text: str) -> tuple[float, ...]:
    steps_s = tuple(float(part) for part in text.split(","))
    if len(steps_s) < 2 or not all(0 < step_s < 1e3 for step_s in steps_s):
        raise argparse.ArgumentTypeError(f"expected seconds above 0 of at least 2 islands, got {text}")
    return steps_s


def _mib(text: str) -> float:
    size = float(text)
    if not 0 < size < 1e5:
        raise argparse.ArgumentTypeError(f"expected mebibytes above 0, got {text}")
    return size


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text}")
    return seconds
