"""`lowcomm bench round`: on this machine, or one island among others on several hosts."""

from __future__ import annotations

import argparse

from lowcomm import codecs
from lowcomm.cli.bench.arguments import add_joining, counts, seconds, site_of, sizes, tell
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
from lowcomm.errors import ConfigError, ExchangeError
from lowcomm.types import Json

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


def add(parts: Subparsers) -> None:
    """Declare it."""
    parser = add_command(
        parts,
        "round",
        about="time rounds over the real swarm: processes of this machine, or one island of several hosts",
        example="lowcomm bench round --peers 2,4,8 --payload-mb 0 --rounds 20 --stock --json rounds.json",
    )
    parser.add_argument(
        "--peers", metavar="N,N", type=counts, default=(2,), help="numbers of peers (default 2)"
    )
    parser.add_argument(
        "--payload-mb",
        metavar="MB,MB",
        type=sizes,
        default=(0.0,),
        help="megabytes of fp32 numbers before encoding; 0 = one number, which leaves the round's forming",
    )
    parser.add_argument("--rounds", metavar="N", type=positive, default=20, help="rounds that count (20)")
    parser.add_argument("--warmup", metavar="N", type=positive, default=2, help="rounds before them (2)")
    parser.add_argument("--codec", choices=codecs.NAMES, default="fp32", help="how they are encoded (fp32)")
    parser.add_argument(
        "--stock",
        action="store_true",
        help="measure stock hivemind beside it, uncompressed; if it fails, ours stay (exit code 1)",
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
        type=seconds,
        default=120.0,
        help="longest wait of and for a peer (120)",
    )
    add_joining(parser)
    add_json(parser)


def measure(args: argparse.Namespace) -> int:
    """Measure, print a table, write the log."""
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

    def tell_trial(seconds: float, outcome: str) -> None:
        tell(f"trial of stock hivemind, matchmaking {seconds:g} s: {outcome}")

    facts = machine_facts()
    results: list[Rounds] = []
    failed: list[str] = []
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
            tell(f"lowcomm, {peers} peers, {payload_mb:g} MB: median {results[-1].median_s:.3f} s")
            if not args.stock:
                continue
            try:
                results.append(measure_hivemind(bench, on_trial=tell_trial))
            except ExchangeError as error:  # what the peer under test does is a result, too
                failed.append(f"hivemind, {peers} peers, {payload_mb:g} MB: {error}")
            else:
                tell(f"hivemind, {peers} peers, {payload_mb:g} MB: median {results[-1].median_s:.3f} s")
    if args.json:
        rounds: list[Json] = [result.to_dict() for result in results]
        write_json(args.json, {"machine": facts, "rounds": rounds, "failed": [*failed]})
    if args.json != "-":
        print_table(Rounds.HEADINGS, [result.row() for result in results])
    for reason in failed:
        print_error(reason)
    return EXIT_FAILED if failed else EXIT_DONE


def _site_round(args: argparse.Namespace) -> int:
    from lowcomm.bench.machine import machine_facts
    from lowcomm.bench.site_rounds import measure_site_rounds

    facts = machine_facts()
    result = measure_site_rounds(site_of(args), args.rounds)
    if args.json:
        write_json(args.json, {"machine": facts, **result})
    if args.json != "-":
        rounds = result["rounds"]
        assert isinstance(rounds, list)
        keys = ("seconds", "bytes_sent", "bytes_received", "committed", "digest")
        print_table(keys, [tuple(str(x[key]) for key in keys) for x in rounds if isinstance(x, dict)])
    return EXIT_DONE
