"""`lowcomm ledger verify RUN`: recompute the hash chains of a run folder, without a network."""

from __future__ import annotations

import argparse
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
    print_error,
    write_json,
)
from lowcomm.errors import ConfigError, LowcommError, StorageError

if TYPE_CHECKING:
    from lowcomm.ledger.audit import Audit

LEDGER = "ledger.jsonl"


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "ledger",
        about="check the committed updates of a run",
        example="lowcomm ledger verify runs/demo/island-0",
    )
    parser.add_argument("action", choices=["verify"], help="recompute hashes, and states where they are kept")
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="an island's run folder")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Verify, say what was verified; exit code 1 if something is wrong."""
    check_writable(args.json)
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
            f"each entry and that it follows another; {found.replayed} states replayed from kept updates, "
            f"{found.states} states in checkpoints; the genesis is {found.genesis}. "
            f"{found.snapshots} states were taken from other peers, {found.rewound} entries rewound by "
            f"restarts.{torn if found.torn_bytes else ''}",
            file=sys.stderr,
        )
    if args.json:
        write_json(args.json, found.to_json())
    return EXIT_DONE if found.valid else EXIT_FAILED


def verify(run_dir: Path) -> Audit:
    """Audit one run folder as far as its files go; what can't be read is a `problem`, too."""
    from lowcomm.ledger.audit import Audit

    found = Audit()
    try:
        _audit(run_dir, find_ledger(run_dir), found)
    except LowcommError as error:
        found.problem = str(error)
    except OSError as error:
        found.problem = (
            f"{error.filename or run_dir}: expected a file or folder that can be read, got: "
            f"{error.strerror or error}; run this as the user who trains"
        )
    return found


def find_ledger(run_dir: Path) -> Path:
    """The ledger file of a run folder.

    Raises:
        StorageError: it is no run folder, or has no ledger.
        OSError: it can't be looked into.
    """
    if not run_dir.is_dir():
        got = "a file; name the folder that it is in" if run_dir.exists() else "nothing of that name"
        raise StorageError(f"{run_dir}: expected the run folder of an island, got {got}")
    ledger = run_dir / LEDGER
    if ledger.is_file():
        return ledger
    if ledger.exists():
        raise StorageError(f"{ledger}: expected the ledger of a run, got no regular file; restore it")
    islands = sorted(run_dir.glob(f"*/{LEDGER}"))
    if islands:
        raise StorageError(
            f"{run_dir}: expected the run folder of one island, got that of {len(islands)}; name one, such "
            f"as {islands[0].parent}"
        )
    raise StorageError(
        f"{run_dir}: expected the run folder of an island, got one without a {LEDGER}: there is nothing to "
        "verify; an island writes it when its first round commits"
    )


def _audit(run_dir: Path, ledger: Path, found: Audit) -> None:
    """Fill in what the files tell.

    Raises:
        LowcommError: a checkpoint or config.toml is damaged.
        OSError: a file can't be read.
    """
    from lowcomm.config.load import load_config
    from lowcomm.ledger.audit import Auditor

    recipe = run_dir / "config.toml"
    if not recipe.is_file():
        Auditor(found, ledger)
        return
    try:
        config = load_config(recipe)
    except ConfigError:
        Auditor(found, ledger)
        if found.valid:
            raise
        return

    from lowcomm.build import build_outer_state
    from lowcomm.storage.checkpoint import SLOTS, Checkpoints, saved_fragments

    auditor = Auditor(found, ledger, config.shared.run_id, config.shared.schedule.num_fragments)
    if not found.valid:
        return
    checkpoints = Checkpoints(run_dir / "checkpoints", keep=config.train.keep_checkpoints)
    count, wants = config.shared.schedule.num_fragments, ("chain", "anchor", SLOTS)
    saved = [
        (str(checkpoints.folder(step)), saved_fragments(checkpoints, step, count, wants))
        for step in checkpoints.steps()
    ]
    auditor.check_states(build_outer_state(config), saved)
