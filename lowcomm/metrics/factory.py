"""From `[metrics]` to the sinks of one island."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from lowcomm.config.schema import MetricsConfig
from lowcomm.errors import ConfigError
from lowcomm.metrics.base import Fanout, Sink
from lowcomm.metrics.console import STEPS, TOKENS, console_sink
from lowcomm.metrics.jsonl import JsonLinesSink
from lowcomm.metrics.tensorboard_sink import TensorBoardSink
from lowcomm.metrics.wandb_sink import WandbSink, choose_mode
from lowcomm.types import Json

METRICS_FILE = "metrics.jsonl"

logger = logging.getLogger(__name__)


def open_sinks(
    settings: MetricsConfig,
    run_dir: Path,
    run_id: str,
    name: str,
    config: Mapping[str, Json],
    recipe: str,
) -> Fanout:
    """Open metrics.jsonl, the console, TensorBoard and wandb for one island.

    Args:
        settings: the `[metrics]` part of the configuration.
        run_dir: the island's run folder; must exist.
        run_id: the name of the run; groups the islands in wandb.
        name: this island among them, e.g. `shard-0-Qm4x7f`.
        config: the resolved configuration as nested dicts; stored in wandb, and the console reads
            `train.steps` or `train.tokens` from it.
        recipe: the configuration as TOML; stored in wandb.

    Raises:
        StorageError: metrics.jsonl can't be written: better known before the first step.
        ConfigError: TensorBoard is wanted and not installed.
    """
    sinks: list[tuple[str, Sink]] = [(METRICS_FILE, JsonLinesSink(run_dir / METRICS_FILE))]
    if settings.console != "off":
        total, key = goal(config)
        console = console_sink(settings.console, total, key=key)
        if console is not None:
            sinks.append(("console", console))
    if settings.tensorboard:
        sinks.append(("tensorboard", TensorBoardSink(run_dir, recipe)))
    if choose_mode(settings.wandb, os.environ) != "off":
        sinks.append(("wandb", WandbSink(settings, run_dir, run_id, name, config, recipe)))
    elif settings.wandb in ("online", "offline"):
        logger.warning(
            "metrics.wandb = %s, but wandb is switched off here (WANDB_MODE, WANDB_DISABLED or "
            "`wandb disabled`): nothing is recorded there",
            settings.wandb,
        )
    return Fanout(sinks, sys.stderr)


def goal(config: Mapping[str, Json]) -> tuple[int, str]:
    """When a run is over, and which field of a train line counts up to it.

    Args:
        config: the resolved configuration as nested dicts.

    Raises:
        ConfigError: it has no `train.steps`.
    """
    train = config.get("train")
    steps, tokens = (train.get("steps"), train.get("tokens")) if isinstance(train, dict) else (None, None)
    if not isinstance(steps, int):
        raise ConfigError(
            "the configuration of the run has no train.steps; pass the whole resolved configuration"
        )
    return (tokens, TOKENS) if isinstance(tokens, int) and tokens else (steps, STEPS)
