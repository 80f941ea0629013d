"""`lowcomm status STRING`: the swarm as any of its peers sees it."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from typing import cast

from lowcomm.cli.common import (
    EXIT_DONE,
    EXIT_FAILED,
    Subparsers,
    add_access,
    add_command,
    make_gate,
    print_table,
    split_join,
    write_json,
)
from lowcomm.errors import ConfigError
from lowcomm.types import Json, PeerStatus

HEADINGS = (
    "peer", "role", "phase", "inner step", "outer steps", "heads", "tokens/s", "shard", "seen", "address",
)  # fmt: skip


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "status",
        about="show the peers of a swarm",
        example="lowcomm status 'demo@/ip4/10.0.0.1/tcp/31337/p2p/12D3Koo...'",
    )
    parser.add_argument(
        "string", metavar="STRING", help="the shared string RUN_ID@multiaddr of any live peer"
    )
    add_access(parser)
    parser.add_argument("--timeout", metavar="S", type=float, default=20.0, help="look for at most S seconds")
    parser.add_argument(
        "--json", metavar="FILE", nargs="?", const="-", help="write JSON to FILE, or to the standard output"
    )


def run(args: argparse.Namespace) -> int:
    """Join as an observer, look, leave."""
    run_id, addresses = split_join([args.string])
    if run_id is None:
        raise ConfigError(
            f"{args.string}: expected RUN_ID@multiaddr: peers answer to members of their run only"
        )
    from lowcomm import exchanges
    from lowcomm.outer.observer import observe

    exchange = exchanges.swarm(run_id=run_id, initial_peers=addresses, gate=make_gate(args, run_id))
    peers = sorted(asyncio.run(observe(exchange, args.timeout)), key=lambda peer: (peer.shard, peer.peer))
    if args.json:
        write_json(args.json, {"run_id": run_id, "peers": [_to_dict(peer) for peer in peers]})
    if args.json != "-":
        print_table(HEADINGS, status_rows(peers), title=f"run {run_id}: {len(peers)} peers")
    if not peers:
        print("lowcomm: no peer answered", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_DONE


def status_rows(peers: Sequence[PeerStatus]) -> list[tuple[str, ...]]:
    """One row per peer, under `HEADINGS`."""
    from lowcomm.metrics.console import short

    return [
        (
            short(peer.peer),
            peer.role,
            peer.phase,
            f"{peer.inner_step:,}",
            " ".join(map(str, peer.outer_steps)) or "-",
            " ".join(head[:8] for head in peer.heads) or "-",
            f"{peer.tokens_per_s:,.0f}",
            str(peer.shard) if peer.shard >= 0 else "-",
            f"{peer.seen_s_ago:.1f} s ago",
            peer.addresses[0] if peer.addresses else "-",
        )
        for peer in peers
    ]


def _to_dict(peer: PeerStatus) -> dict[str, Json]:
    return {
        "peer": peer.peer,
        "role": peer.role,
        "phase": peer.phase,
        "inner_step": peer.inner_step,
        "outer_steps": cast(list[Json], list(peer.outer_steps)),
        "heads": cast(list[Json], list(peer.heads)),
        "tokens_per_s": peer.tokens_per_s,
        "shard": peer.shard,
        "addresses": cast(list[Json], list(peer.addresses)),
        "seen_s_ago": peer.seen_s_ago,
    }
