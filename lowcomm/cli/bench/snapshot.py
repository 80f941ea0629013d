"""`lowcomm bench snapshot`: a snapshot that is cut in mid-transfer."""

from __future__ import annotations

import argparse

from lowcomm.cli.bench.arguments import mib, seconds, tell
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
from lowcomm.errors import ConfigError


def add(parts: Subparsers) -> None:
    """Declare it."""
    parser = add_command(
        parts,
        "snapshot",
        about="kill the joiner, then a donor, in the middle of a snapshot, and count the bytes",
        example="lowcomm bench snapshot --payload-mib 400 --json snapshot.json",
    )
    parser.add_argument(
        "--payload-mib", metavar="MIB", type=mib, default=400.0, help="MiB of the state (400)"
    )
    parser.add_argument("--donors", metavar="N", type=positive, default=2, help="islands that have it (2)")
    parser.add_argument(
        "--cut", metavar="SHARE", type=float, default=0.5, help="share that has come by then (0.5)"
    )
    parser.add_argument(
        "--mbit-s", metavar="RATE", type=float, default=0.0, help="upload of each donor (0 = unlimited)"
    )
    parser.add_argument(
        "--deadline-s", metavar="S", type=seconds, default=120.0, help="longest wait of and for a peer (120)"
    )
    add_json(parser)


def measure(args: argparse.Namespace) -> int:
    """Measure, print a table, write the log; exit code 1 where the joiner has another state."""
    if args.donors < 2:
        raise ConfigError(f"--donors: expected at least 2, so that one may die, got {args.donors}")
    if not 0.0 < args.cut < 1.0:
        raise ConfigError(f"--cut: expected a share between 0 and 1, got {args.cut:g}")
    if not args.mbit_s >= 0.0:
        raise ConfigError(f"--mbit-s: expected at least 0, got {args.mbit_s:g}")
    from lowcomm.bench.machine import machine_facts
    from lowcomm.bench.snapshots import Cut, SnapshotBench, measure_cut

    facts = machine_facts()
    bench = SnapshotBench(
        payload_mib=args.payload_mib,
        donors=args.donors,
        cut=args.cut,
        mbit_s=args.mbit_s,
        deadline_s=args.deadline_s,
    )
    cuts: list[Cut] = []
    for killed in ("joiner", "donor"):
        cuts.append(measure_cut(bench, killed))
        tell(f"{killed} killed: {cuts[-1].ratio:.3f} of the state were moved")
    if args.json:
        log = {"donors": bench.donors, "cut": bench.cut, "mbit_s": bench.mbit_s}
        write_json(
            args.json, {"machine": facts, "snapshot": {**log, "cuts": [cut.to_dict() for cut in cuts]}}
        )
    if args.json != "-":
        print_table(Cut.HEADINGS, [cut.row() for cut in cuts])
    if not all(cut.equal for cut in cuts):
        print_error("expected the joiner to have the donors' state, got another digest")
        return EXIT_FAILED
    return EXIT_DONE
