"""What the files of a run folder prove, without a network."""

from __future__ import annotations

from pathlib import Path

from lowcomm.config.load import load_config
from lowcomm.config.schema import Config
from lowcomm.errors import ConfigError, LowcommError, StorageError
from lowcomm.ledger.audit import Audit, Auditor, Law
from lowcomm.recovery.mandates import read_mandates
from lowcomm.storage.checkpoint import SLOTS, Checkpoints, saved_fragments
from lowcomm.training.build import build_outer_state
from lowcomm.types import PeerId

LEDGER = "ledger.jsonl"


def law_of(run_dir: Path) -> tuple[Config | None, Law]:
    """The configuration, where it can be read, and how votes are judged.

    Raises:
        ProtocolError: a mandate in the folder is damaged.
    """
    allowed = frozenset(given.mandate.digest for given in read_mandates(run_dir))
    recipe = run_dir / "config.toml"
    try:
        config = load_config(recipe) if recipe.is_file() else None
    except ConfigError:
        return None, Law(allowed=allowed)
    if config is None:
        return None, Law(allowed=allowed)
    rules = config.shared.round
    return config, Law(
        majority=rules.partition == "majority",
        min_participants=rules.min_participants,
        operator=PeerId(rules.operator),
        allowed=allowed,
    )


def verify(run_dir: Path, *, states: bool = True) -> Audit:
    """Audit one run folder as far as its files go; what can't be read is a `problem`, too.

    Args:
        states: also recompute the genesis, and compare the states of checkpoints and kept updates.
    """
    found = Audit()
    try:
        _audit(run_dir, find_ledger(run_dir), found, states=states)
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


def _audit(run_dir: Path, ledger: Path, found: Audit, *, states: bool) -> None:
    """Fill in what the files tell.

    Raises:
        LowcommError: a checkpoint or config.toml is damaged.
        OSError: a file can't be read.
    """
    config, law = law_of(run_dir)
    if config is None:
        Auditor(found, ledger, law=law)
        recipe = run_dir / "config.toml"
        if found.valid and recipe.is_file():
            load_config(recipe)  # which says what is wrong with it
        return
    auditor = Auditor(found, ledger, config.shared.run_id, config.shared.schedule.num_fragments, law)
    # nobody can make the model of a given task, so its genesis stays unknown
    if not (found.valid and states) or config.shared.task.kind == "given":
        return
    checkpoints = Checkpoints(run_dir / "checkpoints", keep=config.train.keep_checkpoints)
    count, wants = config.shared.schedule.num_fragments, ("chain", "anchor", SLOTS)
    saved = [
        (str(checkpoints.folder(step)), saved_fragments(checkpoints, step, count, wants))
        for step in checkpoints.steps()
    ]
    auditor.check_states(build_outer_state(config), saved)
