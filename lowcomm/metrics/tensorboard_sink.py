"""TensorBoard: the one module that imports it. Event files lie in the run folder, below `tensorboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowcomm.errors import ConfigError
from lowcomm.metrics.base import Record
from lowcomm.metrics.charts import charted

FOLDER = "tensorboard"


class TensorBoardSink:
    """Writes the records of one island as scalars, with the inner step as abscissa.

    Args:
        run_dir: the run folder.
        recipe: the configuration as TOML, kept as a text beside the charts.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, run_dir: Path, recipe: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "metrics.tensorboard: expected the package tensorboard, which is not installed; "
                "pip install 'lowcomm[tensorboard]', or leave the setting out"
            ) from error
        self._make, self._folder, self._recipe = SummaryWriter, run_dir / FOLDER, recipe
        self._writer: Any = None

    def log(self, record: Record) -> None:
        if record.get("kind") == "start":
            self._open(record.get("inner_step"))
        if self._writer is None:
            return
        values = charted(record)
        step = values.pop("inner_step", None)
        for name, value in values.items():
            if isinstance(value, (bool, int, float)):
                self._writer.add_scalar(name, float(value), step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _open(self, inner_step: object) -> None:
        """A session begins; what one before it wrote of later steps is hidden, as it is trained again."""
        again = inner_step + 1 if isinstance(inner_step, int) and inner_step > 0 else None
        self._writer = self._make(str(self._folder), purge_step=again)
        self._writer.add_text("recipe", f"```toml\n{self._recipe}\n```", inner_step)
