"""What a loop of somebody's own writes into its run folder: what `lowcomm report`, `export` and wandb read.

`lowcomm train` keeps a journal of its own, with more in it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from lowcomm import __version__
from lowcomm.clock import Clock
from lowcomm.config.schema import MetricsConfig
from lowcomm.islands.base import Island
from lowcomm.metrics.factory import METRICS_FILE, open_sinks
from lowcomm.metrics.journal import Described, Journal, Loop
from lowcomm.metrics.summary import SUMMARY_FILE
from lowcomm.outer.arguments import WandbMode
from lowcomm.recovery.joining import JoinReport
from lowcomm.storage.files import io_reason, write_atomically
from lowcomm.tasks.base import Facts
from lowcomm.types import Json, RoundReport

logger = logging.getLogger(__name__)

ANCHOR_FILE = "anchor.safetensors"
LOG_EVERY = 10
"""Inner steps between two train lines."""


class _Alone:
    """The lead by itself: other ranks have nothing to tell."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def gather(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        return [value]

    def any_rank(self, flag: bool) -> bool:
        return flag


class Records:
    """The records of one loop, on the lead of its island.

    Args:
        folder: the run folder.
        settings: dotted keys of what is equal on all islands.
        wandb: as `metrics.wandb` of a recipe.
    """

    def __init__(
        self,
        folder: Path,
        run_id: str,
        settings: Mapping[str, Json],
        *,
        expected_peers: int,
        island: Island,
        clock: Clock,
        wandb: WandbMode,
    ) -> None:
        self._folder, self._run_id, self._island, self._clock = folder, run_id, island, clock
        self._config = nested({**settings, "shared.run_id": run_id})
        self._described = Described(run_id=run_id, facts=Facts(), expected_peers=expected_peers)
        self._wandb, self._began_s = wandb, clock.monotonic_s()
        self._journal: Journal | None = None
        self._losses: list[float] = []
        self._line_s, self._line_tokens = self._began_s, 0

    def start(self, outer: Loop, join: JoinReport, **facts: Json) -> None:
        """The loop has joined.

        Raises:
            StorageError: metrics.jsonl can't be written: better known before the first step.
        """
        journal = self._journal = Journal(
            self._described,
            _Alone(self._island.device),
            outer,
            clock=self._clock,
            began_s=self._began_s,
            metrics=self._folder / METRICS_FILE,
        )
        sinks = MetricsConfig(console="off", wandb=self._wandb)
        journal.sinks = open_sinks(sinks, self._folder, self._run_id, outer.name, self._config, recipe="")
        self._line_s, self._line_tokens = self._clock.monotonic_s(), outer.tokens_trained
        journal.log(
            kind="start",
            run_id=self._run_id,
            name=outer.name,
            peer=outer.peer_id,
            config=self._config,
            version=__version__,
            how=join.how,
            inner_step=join.inner_step,
            shard=join.shard,
            outer_steps=list(join.outer_steps),
            tokens=outer.tokens_trained,
            swarm_tokens=outer.swarm_tokens,
            tokens_credited=outer.tokens_credited,
            parameters=outer.parameters,
            peers=list(join.peers),
            counts=asdict(journal.earlier),
            **facts,
        )

    def show_loss(self, loss: float) -> None:
        """A training loss."""
        self._losses.append(loss)

    def stepped(self, outer: Loop, reports: Sequence[RoundReport]) -> None:
        """An inner step was taken, and these rounds have ended."""
        if (journal := self._journal) is None:
            return
        for report in reports:
            journal.round(report)
        if outer.inner_step % LOG_EVERY == 0 or reports:
            now_s, tokens = self._clock.monotonic_s(), outer.tokens_trained
            journal.train(
                self._losses,
                lr=self._island.optimizers[0].param_groups[0]["lr"],
                tokens_per_s=(tokens - self._line_tokens) / max(1e-9, now_s - self._line_s),
            )
            self._losses, self._line_s, self._line_tokens = [], now_s, tokens

    def finished(self, outer: Loop, anchor: Mapping[str, torch.Tensor]) -> None:
        """The last rounds are over: keep the anchor for `lowcomm export`, and the figures.

        A disk that is full is said, and the program goes on.
        """
        if (journal := self._journal) is None:
            return
        summary = journal.summarize(interrupted=False)
        try:
            self._keep(anchor, outer.inner_step)
            text = json.dumps(summary.to_dict(), indent=2) + "\n"
            write_atomically(self._folder / SUMMARY_FILE, text.encode())
        except (OSError, SafetensorError) as error:
            logger.error("%s: the anchor or the figures can't be written: %s", self._folder, io_reason(error))
        journal.log(kind="end", reason="finished", summary=summary.to_dict())
        self._journal = None
        journal.sinks.close()

    def _keep(self, anchor: Mapping[str, torch.Tensor], step: int) -> None:
        owned = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in anchor.items()}
        partial = self._folder / f".{ANCHOR_FILE}.new"
        save_file(owned, partial, metadata={"run_id": self._run_id, "inner_step": str(step)})
        partial.replace(self._folder / ANCHOR_FILE)

    def close(self, error: BaseException | None = None) -> None:
        """The loop leaves; without `finished` it was stopped, or has failed."""
        if (journal := self._journal) is None:
            return
        self._journal = None
        failed = error is not None and not isinstance(error, KeyboardInterrupt)
        what: dict[str, Json] = {"error": f"{type(error).__name__}: {error}"} if failed else {}
        journal.log(kind="end", reason="failed" if failed else "stopped", summary={}, **what)
        journal.sinks.close()


def nested(flat: Mapping[str, Json]) -> dict[str, Any]:
    """Dotted keys as tables in tables."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *sections, name = path.split(".")
        table = tree
        for section in sections:
            table = table.setdefault(section, {})
        table[name] = value
    return tree
