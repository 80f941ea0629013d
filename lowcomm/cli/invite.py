"""`lowcomm invite`: make a token that lets a peer into a run by invitation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lowcomm.cli.common import EXIT_DONE, Subparsers, add_command, positive

DAY_S = 86_400


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "invite",
        about="make a token for a run with shared.access.mode = invite",
        example="lowcomm invite --run-id demo --identity owner.key --days 30 > token",
    )
    parser.add_argument("--run-id", metavar="NAME", required=True, help="the run")
    parser.add_argument(
        "--identity", metavar="FILE", type=Path, required=True,
        help="the owner's private key, made if missing",
    )  # fmt: skip
    parser.add_argument(
        "--peer", metavar="ID", help="the peer it is for (default: whoever holds the token; keep it secret)"
    )
    parser.add_argument("--days", metavar="N", type=positive, default=30, help="valid for (default 30)")


def run(args: argparse.Namespace) -> int:
    """Print the token; the owner's peer id goes to the standard error."""
    from lowcomm.clock import SystemClock
    from lowcomm.exchanges.swarm.access import make_token
    from lowcomm.exchanges.swarm.identity import IdentityFile
    from lowcomm.types import PeerId

    file = IdentityFile(args.identity)
    try:
        expires_s = int(SystemClock().wall_s()) + args.days * DAY_S
        peer = PeerId(args.peer) if args.peer else None
        print(make_token(file.identity, args.run_id, peer=peer, expires_s=expires_s))
    finally:
        file.close()
    print(f"lowcomm: shared.access.owner = {file.identity.peer_id!r}", file=sys.stderr)
    return EXIT_DONE
