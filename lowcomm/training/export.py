"""Export the anchor of a checkpoint, as the task of the run writes it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lowcomm.config.load import load_config
from lowcomm.errors import CheckpointError, ConfigError, StorageError
from lowcomm.outer.records import ANCHOR_FILE
from lowcomm.storage.checkpoint import Checkpoints, saved_fragments
from lowcomm.storage.files import io_reason, sync_folder
from lowcomm.tasks.given import GivenTask
from lowcomm.training.build import build_task
from lowcomm.training.card import card
from lowcomm.training.provenance import provenance_of


def export(run_dir: Path, out_dir: Path, *, step: int | None = None, merge: bool = False) -> int:
    """Write the anchor of one checkpoint to `out_dir`.

    Args:
        run_dir: an island's run folder.
        out_dir: made if it isn't there; an export in it is replaced, other files stay.
        step: inner step of the checkpoint; None = the newest.
        merge: adapters into the weights of their model.

    Returns:
        The inner step that was exported.

    Raises:
        StorageError: `run_dir` is no run folder or has no checkpoint, or `out_dir` can't be written.
        CheckpointError: the checkpoint is not there, is damaged, or doesn't fit config.toml.
        ConfigError: config.toml in the run folder is damaged, or its task can't be made here.
    """
    recipe = run_dir / "config.toml"
    if not recipe.is_file() and (run_dir / ANCHOR_FILE).is_file() and step is None and not merge:
        return _export_kept(run_dir / ANCHOR_FILE, out_dir)
    if not recipe.is_file():
        raise StorageError(f"{run_dir}: expected the run folder of an island, found no config.toml in it")
    config = load_config(recipe)
    checkpoints = Checkpoints(run_dir / "checkpoints", keep=config.train.keep_checkpoints)
    steps = checkpoints.steps()
    if not steps:
        raise StorageError(f"{run_dir}: expected a checkpoint to export, found none; train further first")
    step = steps[-1] if step is None else step
    anchor: dict[str, Tensor] = {}
    chains: list[Mapping[str, Any]] = []
    with checkpoints.understood(step):
        for saved in saved_fragments(checkpoints, step, config.shared.schedule.num_fragments):
            anchor.update(saved["tensors"])
            chains += [saved["chain"]] if "chain" in saved else []
    task = build_task(config)
    write = getattr(task, "export_merged", None) if merge else task.export
    if write is None:
        raise ConfigError(
            f"export --merge: expected a run of shared.task.kind = peft, whose adapters can be merged, got "
            f"{config.shared.task.kind}"
        )

    def write_all(partial: Path) -> None:
        write(anchor, partial, run_id=config.shared.run_id, step=step)
        words = "\n".join(provenance_of(run_dir, states=False).lines())
        with (partial / "README.md").open("a", encoding="utf-8") as readme:
            readme.write(f"{card(config, step, chains)}\n## Where it comes from\n\n{words}\n")

    try:
        _write(out_dir, write_all)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoints.folder(step)}: {error}") from error
    return step


def _export_kept(file: Path, out_dir: Path) -> int:
    """The anchor that a loop of somebody's own has kept at its end."""
    try:
        with safe_open(file, framework="pt") as kept:
            about = kept.metadata()
            anchor = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118  # no mapping
        run_id, step = about["run_id"], int(about["inner_step"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: expected the anchor of a run, got a damaged file: {error}") from error
    _write(out_dir, lambda partial: GivenTask(None).export(anchor, partial, run_id=run_id, step=step))
    return step


def _write(out_dir: Path, write: Callable[[Path], None]) -> None:
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        partial = out_dir / f".export.{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            write(partial)
            for path in sorted(partial.iterdir()):
                path.replace(out_dir / path.name)
            sync_folder(out_dir)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{out_dir}: the export could not be written: {io_reason(error)}") from error
