"""`lowcomm seed`: a bootstrap peer that trains nothing."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from lowcomm.arguments import split_join
from lowcomm.cli.common import EXIT_DONE, Subparsers, add_access, add_command, make_gate
from lowcomm.interrupts import leaving_signals

LISTEN = ("/ip4/0.0.0.0/tcp/31337",)


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "seed",
        about="be a bootstrap peer, which trains nothing and tells newcomers of the others",
        example="lowcomm seed --run-id demo --listen /ip4/0.0.0.0/tcp/31337 --identity seed.key",
    )
    parser.add_argument("--run-id", metavar="NAME", default="lowcomm", help="the run (default lowcomm)")
    parser.add_argument(
        "--listen", metavar="MULTIADDR", action="append", help=f"may be repeated (default {LISTEN[0]})"
    )
    parser.add_argument(
        "--announce", metavar="MULTIADDR", action="append", default=[],
        help="the address that others reach it at, where a router maps the port; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--identity", metavar="FILE", type=Path,
        help="file of the private key, made if missing; it keeps the shared string the same over restarts",
    )  # fmt: skip
    parser.add_argument(
        "--join", metavar="STRING", action="append", default=[], help="shared string of another live peer"
    )
    parser.add_argument(
        "--relay", action="store_true", help="reach others through relays where there is no direct way"
    )
    add_access(parser)
    parser.add_argument("--nat-port-map", action="store_true", help="ask the router to map the port (UPnP)")


def run(args: argparse.Namespace) -> int:
    """Print the shared string, then run until Ctrl-C."""
    _, initial_peers = split_join(args.join)
    from lowcomm import exchanges
    from lowcomm.peers.observer import run_seed

    exchange = exchanges.swarm(
        run_id=args.run_id,
        initial_peers=initial_peers,
        listen=args.listen or LISTEN,
        announce=args.announce,
        identity_path=args.identity,
        relay=args.relay,
        nat_port_map=args.nat_port_map,
        gate=make_gate(args, args.run_id),
    )

    def tell(address: str) -> None:
        print(address, flush=True)
        print(
            "lowcomm: join with the string above (--join STRING); Ctrl-C ends the seed",
            file=sys.stderr,
            flush=True,
        )

    async def serve() -> None:
        seed = asyncio.current_task()
        assert seed is not None
        for number in leaving_signals():
            asyncio.get_running_loop().add_signal_handler(number, seed.cancel)
        await run_seed(exchange, tell)

    try:
        asyncio.run(serve())
    except asyncio.CancelledError:
        pass
    return EXIT_DONE
