"""Options and outputs that several benches share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lowcomm.cli.common import (
    positive,
)
from lowcomm.errors import ConfigError

if TYPE_CHECKING:
    from lowcomm.bench.site import Site

ALL_INTERFACES = "/ip4/0.0.0.0/tcp/0"


def add_joining(parser: argparse.ArgumentParser) -> None:
    """The options of a bench that runs once on each host."""
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
        "--payload-mib", metavar="MIB", type=mib, default=25.0, help="MiB of fp32 before encoding (25)"
    )


def site_of(args: argparse.Namespace) -> Site:
    """The island that they describe."""
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


def tell(message: str) -> None:
    """A line of progress."""
    print(message, file=sys.stderr, flush=True)


def counts(text: str) -> tuple[int, ...]:
    """Numbers of peers: `2,4,8`."""
    counts = tuple(int(part) for part in text.split(","))
    if min(counts) < 2:
        raise argparse.ArgumentTypeError(f"expected numbers of at least 2, got {text}")
    return counts


def sizes(text: str) -> tuple[float, ...]:
    """Megabytes: `0,100`."""
    sizes = tuple(float(part) for part in text.split(","))
    if not all(0 <= size < 1e6 for size in sizes):
        raise argparse.ArgumentTypeError(f"expected megabytes of at least 0, got {text}")
    return sizes


def mib(text: str) -> float:
    """Mebibytes."""
    size = float(text)
    if not 0 < size < 1e5:
        raise argparse.ArgumentTypeError(f"expected mebibytes above 0, got {text}")
    return size


def seconds(text: str) -> float:
    """Seconds above 0."""
    seconds = float(text)
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text}")
    return seconds
