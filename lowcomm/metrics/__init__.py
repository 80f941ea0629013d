"""Where a run can be followed: metrics.jsonl, the console, wandb, TensorBoard."""

from lowcomm.metrics.base import Fanout, Record, Sink
from lowcomm.metrics.factory import METRICS_FILE, open_sinks

__all__ = ["METRICS_FILE", "Fanout", "Record", "Sink", "open_sinks"]
