"""Tasks of the lm-evaluation-harness on a trained model (Gao et al., zenodo.org/records/10256836)."""

from __future__ import annotations

import difflib
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowcomm.errors import ConfigError, DataError, ModelError
from lowcomm.training.export import export
from lowcomm.types import Json

NOISY = ("lm_eval", "lm-eval", "httpx", "transformers", "datasets")
SHOWN = 300


def evaluate_tasks(
    model: Path,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    device: str = "cpu",
) -> dict[str, dict[str, Json]]:
    """Metrics of each task.

    Args:
        model: an island's run folder, whose anchor is exported first, or a folder as transformers has it.
        tasks: names, as `lm-eval ls tasks` has them or the files in `include`.
        include: folder of task files (YAML) of one's own.
        limit: documents of each task; None = all.
        batch_size: sequences at a time.

    Raises:
        ConfigError: lm-eval is not installed, or has no such task.
        ModelError: transformers can't load the model, or it has no tokenizer.
        DataError: the data of a task can't be had.
        StorageError, CheckpointError: the run folder can't be exported.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            f"lowcomm eval: expected lm-eval, got {error}; pip install 'lowcomm[eval]'"
        ) from error
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    manager = TaskManager(include_path=None if include is None else str(include))
    _require_tasks(tasks, manager.all_tasks)
    with tempfile.TemporaryDirectory(prefix="lowcomm-eval-") as temporary:
        folder = model
        if (model / "config.toml").is_file():
            folder = Path(temporary) / "model"
            export(model, folder)
        lm = _load(folder, batch_size, device)
        try:
            found: dict[str, Any] = lm_eval.simple_evaluate(
                model=lm, tasks=list(tasks), task_manager=manager, limit=limit, log_samples=False
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise DataError(
                f"--tasks {','.join(tasks)}: expected tasks whose data is at hand, got "
                f"{type(error).__name__}: {_one_line(error)}"
            ) from error
    return {
        task: {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        for task, metrics in found["results"].items()
    }


def _require_tasks(tasks: Sequence[str], known: Sequence[str]) -> None:
    for task in tasks:
        if task not in known:
            near = ", ".join(difflib.get_close_matches(task, known, 5)) or "none is like it"
            raise ConfigError(
                f"--tasks: expected tasks of lm-eval or of --include, got {task!r}; did you mean: {near}?"
            )


def _load(folder: Path, batch_size: int, device: str) -> Any:
    from lm_eval.models.huggingface import HFLM

    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: expected a run folder, or a model folder with a config.json, got neither"
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise ModelError(
            f"{folder}: expected a model with a tokenizer, got one without; models of bytes have none: "
            "train on a corpus (docs/corpus.md)"
        )
    try:
        return HFLM(pretrained=str(folder), batch_size=batch_size, device=device)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{folder}: expected a model that transformers loads, got {_one_line(error)}"
        ) from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
