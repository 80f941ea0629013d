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
from lowcomm.errors import StorageError

if TYPE_CHECKING:
    from lowcomm.outer.audit import Audit

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
    if args.json:
        write_json(args.json, found.to_json())
    print(
        f"lowcomm: {found.entries} entries, head {(found.head or 'unknown')[:12]}. Verified: the hash of "
        f"each entry and that it follows another; {found.replayed} states replayed from kept updates, "
        f"{found.states} states in checkpoints; the genesis is {found.genesis}. "
        f"{found.snapshots} states were taken from other peers, {found.rewound} entries rewound by restarts.",
        file=sys.stderr,
    )
    if not found.valid:
        print_error(f"{args.run_dir}: {found.problem}")
        return EXIT_FAILED
    return EXIT_DONE


def verify(run_dir: Path) -> Audit:
    """Audit one run folder as far as its files go.

    Raises:
        StorageError: there is no ledger in it.
        ConfigError: its config.toml is damaged.
    """
    from lowcomm.outer.audit import Auditor

    if not run_dir.is_dir():
        raise StorageError(f"{run_dir}: expected the run folder of an island, found no folder")
    recipe = run_dir / "config.toml"
    if not recipe.is_file():
        return Auditor(run_dir / LEDGER).found

    from lowcomm.build import build_outer_state
    from lowcomm.config.load import load_config
    from lowcomm.errors import CheckpointError
    from lowcomm.storage.checkpoint import Checkpoints

    config = load_config(recipe)
    auditor = Auditor(run_dir / LEDGER, config.shared.run_id)
    if not auditor.found.valid:
        return auditor.found
    checkpoints = Checkpoints(run_dir / "checkpoints", keep=config.train.keep_checkpoints)
    saved = []
    for step in checkpoints.steps():
        try:
            saved.append(
                (checkpoints.folder(step).name, checkpoints.load(step, only=("outer",))["outer"]["outer"])
            )
        except CheckpointError as error:
            auditor.found.problem = str(error)
            return auditor.found
    auditor.check_states(build_outer_state(config), saved)
    return auditor.found
