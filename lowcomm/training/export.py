"""Export the anchor of a checkpoint, as the task of the run writes it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from lowcomm.config.load import load_config
from lowcomm.errors import CheckpointError, ConfigError, StorageError
from lowcomm.storage.checkpoint import Checkpoints, saved_fragments
from lowcomm.storage.files import io_reason, sync_folder
from lowcomm.training.build import build_task


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
    if not recipe.is_file():
        raise StorageError(f"{run_dir}: expected the run folder of an island, found no config.toml in it")
    config = load_config(recipe)
    checkpoints = Checkpoints(run_dir / "checkpoints", keep=config.train.keep_checkpoints)
    steps = checkpoints.steps()
    if not steps:
        raise StorageError(f"{run_dir}: expected a checkpoint to export, found none; train further first")
    step = steps[-1] if step is None else step
    anchor: dict[str, Tensor] = {}
    with checkpoints.understood(step):
        for saved in saved_fragments(checkpoints, step, config.shared.schedule.num_fragments):
            anchor.update(saved["tensors"])
    task = build_task(config)
    write = getattr(task, "export_merged", None) if merge else task.export
    if write is None:
        raise ConfigError(
            f"export --merge: expected a run of shared.task.kind = peft, whose adapters can be merged, got "
            f"{config.shared.task.kind}"
        )
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        partial = out_dir / f".export.{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            write(anchor, partial, run_id=config.shared.run_id, step=step)
            for path in sorted(partial.iterdir()):
                path.replace(out_dir / path.name)
            sync_folder(out_dir)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoints.folder(step)}: {error}") from error
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{out_dir}: the export could not be written: {io_reason(error)}") from error
    return step
