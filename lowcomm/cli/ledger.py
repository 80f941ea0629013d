"""`lowcomm ledger verify RUN` and `compact RUN`: check the ledger of a run folder, and make it small."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lowcomm.cli.common import (
    EXIT_DONE,
    EXIT_FAILED,
    Subparsers,
    add_command,
    add_json,
    check_writable,
    positive,
    print_error,
    write_json,
)
from lowcomm.errors import StorageError

if TYPE_CHECKING:
    from lowcomm.config.schema import Config
    from lowcomm.ledger.audit import Audit, Auditor

KEPT = 1_000


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "ledger",
        about="check the committed updates of a run, or make their file small",
        example="lowcomm ledger verify runs/demo/island-0\n"
        "         lowcomm ledger compact runs/demo/island-0",
    )
    parser.add_argument(
        "action",
        choices=["verify", "compact"],
        help="verify: recompute hashes, votes, and states where they are kept; compact: make one signed line "
        "of the older entries",
    )
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="an island's run folder")
    parser.add_argument(
        "--keep", metavar="N", type=positive, default=KEPT,
        help=f"with compact: entries of each fragment that stay as they are, at least (default {KEPT:,})",
    )  # fmt: skip
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Verify, say what was verified; exit code 1 if something is wrong."""
    check_writable(args.json)
    if args.action == "compact":
        return _compact(args)
    from lowcomm.training.verification import verify

    found = verify(args.run_dir)
    if not found.valid:
        print_error(found.problem)
    else:
        torn = (
            f" The last line is half written ({found.torn_bytes} bytes) and was left out: a killed island "
            "leaves it so and cuts it off when it goes on."
        )
        print(
            f"lowcomm: {found.entries} entries, head {(found.head or 'unknown')[:12]}. Verified: the hash of "
            f"each entry and that it follows another; {_votes(found)}; {found.replayed} states replayed from "
            f"kept updates, {found.states} states in checkpoints; the genesis is {found.genesis}. "
            f"{found.snapshots} states were taken from other peers, {found.rewound} entries rewound by "
            f"restarts.{torn if found.torn_bytes else ''}",
            file=sys.stderr,
        )
    if args.json:
        write_json(args.json, found.to_json())
    return EXIT_DONE if found.valid else EXIT_FAILED


def _votes(found: Audit) -> str:
    """What the votes have shown, as a clause."""
    words = [f"the votes of {found.proven - found.unsigned}"]
    if found.unsigned:
        words.append(f"who has voted for {found.unsigned}, whose names have no keys to check signatures with")
    if found.unproven:
        words.append(f"nobody's for {found.unproven}, which versions before 0.2 wrote without")
    if found.mandates:
        words.append(f"{found.mandates} by an operator's mandate")
    if found.compacted:
        words.append(f"{found.compacted} before are compacted, signed by {found.signer}")
    return ", ".join(words)


def _compact(args: argparse.Namespace) -> int:
    """Make one signed line of the older entries.

    Raises:
        StorageError: the folder is in use, its ledger is damaged, or nothing signs.
    """
    from lowcomm.exchanges.swarm.identity import MESSAGES, IdentityFile
    from lowcomm.ledger.audit import Audit, Auditor
    from lowcomm.ledger.compaction import compact
    from lowcomm.storage.run_folder import lock_folder
    from lowcomm.training.verification import find_ledger, law_of

    run_dir: Path = args.run_dir
    try:
        ledger = find_ledger(run_dir)
        config, law = law_of(run_dir)
        named = config.exchange.identity if config is not None else ""
        identity = Path(named) if named else run_dir / "identity.key"
        if not identity.is_file():
            raise StorageError(f"{identity}: expected this island's key to sign with, got nothing")
        with contextlib.closing(lock_folder(run_dir, "; its ledger is compacted while it doesn't run")):
            found = Audit()
            auditor = Auditor(found, ledger, config.shared.run_id if config is not None else None, law=law)
            if not found.valid:
                raise StorageError(f"not compacted: {found.problem}")
            with contextlib.closing(IdentityFile(identity)) as key:
                keep = {f: max(args.keep, _needed(run_dir, config, auditor, f)) for f in found.heads}
                own = key.identity
                done = compact(ledger, auditor, keep, own.peer_id, lambda data: own.sign(MESSAGES, data))
    except OSError as error:
        raise StorageError(f"{error.filename or run_dir}: {error.strerror or error}") from error
    from lowcomm.metrics.console import human_bytes

    said = (
        f"{done.dropped} entries are one signed line now, {done.kept} stay as they are; {ledger.name} had "
        f"{human_bytes(done.bytes_before)} and has {human_bytes(done.bytes_after)}"
        if done.dropped
        else f"nothing to compact: {done.kept} entries, which stay as they are (--keep {args.keep}, "
        "checkpoints and updates need them)"
    )
    print(f"lowcomm: {said}", file=sys.stderr)
    if args.json:
        write_json(args.json, {"dropped": done.dropped, "kept": done.kept, "bytes": done.bytes_after})
    return EXIT_DONE


def _needed(run_dir: Path, config: Config | None, auditor: Auditor, fragment: int) -> int:
    """How many of the newest entries checkpoints and kept updates are compared with."""
    from lowcomm.storage.checkpoint import Checkpoints, saved_fragments

    chain = auditor.chain_of(fragment)
    if not chain or config is None:
        return len(chain)
    checkpoints = Checkpoints(run_dir / "checkpoints", keep=config.train.keep_checkpoints)
    count = config.shared.schedule.num_fragments
    steps = [
        saved["chain"]["outer_step"]
        for step in checkpoints.steps()
        for index, saved in enumerate(saved_fragments(checkpoints, step, count, ("chain",)))
        if index == fragment
    ]
    updates = (run_dir / "updates").glob(f"{fragment}-*.update")
    steps += [int(path.stem.rpartition("-")[2]) - 1 for path in updates]
    return max(0, chain[-1].entry.outer_step - min(steps, default=chain[-1].entry.outer_step))
