"""`lowcomm status STRING`: the swarm as any of its peers sees it."""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import math
import sys
from collections.abc import Mapping, Sequence
from typing import cast

from lowcomm.arguments import split_join
from lowcomm.cli.common import (
    EXIT_DONE,
    EXIT_FAILED,
    Subparsers,
    add_access,
    add_command,
    check_writable,
    make_gate,
    print_table,
    write_json,
)
from lowcomm.errors import ConfigError
from lowcomm.types import Json, PeerId, PeerStatus

HEADINGS = (
    "name", "peer", "role", "phase", "inner step", "outer steps", "heads", "loss", "tokens/s", "shard",
    "seen", "links", "address",
)  # fmt: skip
LINKS_SHOWN = 6
WATCH_S = 2.0
CLEAR = "\x1b[H\x1b[2J"
"""Moves a terminal's cursor home and clears what is below it."""


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "status",
        about="show the peers of a swarm",
        example="lowcomm status 'demo@/ip4/10.0.0.1/tcp/31337/p2p/12D3Koo...'\n"
        "         lowcomm status 'demo@/ip4/10.0.0.1/tcp/31337/p2p/12D3Koo...' --watch 5",
    )
    parser.add_argument(
        "string", metavar="STRING", help="the shared string RUN_ID@multiaddr of any live peer"
    )
    add_access(parser)
    parser.add_argument("--timeout", metavar="S", type=float, default=20.0, help="look for at most S seconds")
    parser.add_argument(
        "--watch",
        metavar="S",
        nargs="?",
        type=_seconds,
        const=WATCH_S,
        help=f"look again every S seconds (default {WATCH_S:g}) until Ctrl-C",
    )
    parser.add_argument(
        "--json", metavar="FILE", nargs="?", const="-", help="write JSON to FILE, or to the standard output"
    )


def run(args: argparse.Namespace) -> int:
    """Join as an observer, look, leave."""
    run_id, addresses = split_join([args.string], "STRING")
    if run_id is None:
        raise ConfigError(
            f"{args.string}: expected RUN_ID@multiaddr: peers answer to members of their run only"
        )
    check_writable(args.json)
    from lowcomm import exchanges
    from lowcomm.peers.observer import observe, watch

    exchange = exchanges.swarm(run_id=run_id, initial_peers=addresses, gate=make_gate(args, run_id))
    if args.watch is None:
        peers = asyncio.run(observe(exchange, args.timeout))
        _show(run_id, peers, args.json)
        return EXIT_DONE if peers else EXIT_FAILED

    def show(peers: list[PeerStatus]) -> None:
        if args.json != "-" and sys.stdout.isatty():
            sys.stdout.write(CLEAR)
        _show(run_id, peers, args.json, indent=None)
        sys.stdout.flush()

    with contextlib.suppress(KeyboardInterrupt):  # that is how one leaves it
        asyncio.run(watch(exchange, args.timeout, args.watch, show))
    return EXIT_DONE


def _show(run_id: str, peers: Sequence[PeerStatus], json_file: str | None, indent: int | None = 2) -> None:
    ordered = sorted(peers, key=lambda peer: (peer.shard, peer.name, peer.peer))
    if json_file:
        figures: dict[str, Json] = {"run_id": run_id, "peers": [_to_dict(peer) for peer in ordered]}
        write_json(json_file, figures, indent=indent if json_file == "-" else 2)
    if json_file != "-":
        print_table(HEADINGS, status_rows(ordered), title=f"run {run_id}: {len(ordered)} peers")
    for text, names in _troubles(ordered).items():
        print(f"lowcomm: last round, as {', '.join(names)} saw it: {text}", file=sys.stderr)
    if not peers:
        print("lowcomm: no peer answered", file=sys.stderr)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.1 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"expected seconds from 0.1 to 86400, got {text!r}")
    return value


def status_rows(peers: Sequence[PeerStatus]) -> list[tuple[str, ...]]:
    """One row per peer, under `HEADINGS`."""
    from lowcomm.metrics.console import short

    alike = collections.Counter(peer.name for peer in peers)
    names = {peer.peer: peer.name for peer in peers if peer.name and alike[peer.name] == 1}
    return [
        (
            peer.name or "-",
            short(peer.peer),
            peer.role,
            peer.phase,
            f"{peer.inner_step:,}",
            " ".join(map(str, peer.outer_steps)) or "-",
            " ".join(head[:8] for head in peer.heads) or "-",
            "-" if peer.loss is None else f"{peer.loss:.3f}",
            f"{peer.tokens_per_s:,.0f}",
            str(peer.shard) if peer.shard >= 0 else "-",
            f"{peer.seen_s_ago:.1f} s ago",
            _links(peer, names),
            peer.addresses[0] if peer.addresses else "-",
        )
        for peer in peers
    ]


def _troubles(peers: Sequence[PeerStatus]) -> dict[str, list[str]]:
    """Why last rounds came to nothing, or only at a further ballot, and which islands say so."""
    from lowcomm.metrics.console import short

    told: dict[str, list[str]] = {}
    for peer in peers:
        if peer.trouble:  # which others have written in part
            text = "".join(letter if letter.isprintable() else " " for letter in peer.trouble)
            told.setdefault(text, []).append(peer.name or short(peer.peer))
    return told


def _links(peer: PeerStatus, names: Mapping[PeerId, str]) -> str:
    """Whom it is linked to, by names that only one has, and known round trips: `north 12 ms, south 80 ms`."""
    from lowcomm.metrics.console import short

    words = [
        names.get(other, short(other)) + ("" if seconds is None else f" {1000 * seconds:.0f} ms")
        for other, seconds in peer.links
    ]
    more = f" and {len(words) - LINKS_SHOWN} more" if len(words) > LINKS_SHOWN else ""
    return ", ".join(sorted(words)[:LINKS_SHOWN]) + more or "-"


def _to_dict(peer: PeerStatus) -> dict[str, Json]:
    return {
        "name": peer.name,
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
        "loss": peer.loss,
        "trouble": peer.trouble,
        "links": [{"peer": other, "round_trip_s": seconds} for other, seconds in peer.links],
    }
