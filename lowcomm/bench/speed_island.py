"""One island of `lowcomm bench speeds`: a process that trains a small GPT, slowed by a timed wait.

Started by the bench with its settings as JSON; begins at a line on the standard input and prints one JSON
line at the end. Everything from `OuterLoop` down is as in training. The anchors after each round are
kept and evaluated when the run is over, so that this costs no island time.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowcomm.algorithms.learning_rate import lr_factor, set_lr
from lowcomm.build import build_exchange, build_island, build_model, build_outer_loop, build_text
from lowcomm.clock import SystemClock
from lowcomm.config.load import load_config
from lowcomm.config.schema import Config
from lowcomm.data.loader import Loader, eval_batches
from lowcomm.data.shards import ShardedText
from lowcomm.evaluation import mean_loss
from lowcomm.islands.base import Island
from lowcomm.outer.loop import OuterLoop
from lowcomm.types import Json, RoundReport

CPU = torch.device("cpu")


@dataclass(slots=True)
class _Work:
    """What one island has done.

    Attributes:
        trained_s: seconds in inner steps, the timed waits included.
        slowed_after: outer steps that had been committed when it slowed down; -1 = it did not.
        anchors: after each round that is evaluated, where this island does that.
    """

    steps: int = 0
    trained_s: float = 0.0
    slowed_after: int = -1
    rounds: list[dict[str, Json]] = field(default_factory=list)
    anchors: list[dict[str, Tensor]] = field(default_factory=list)


def main() -> None:
    """Join, wait for the word, train, print what came of it."""
    settings = json.loads(sys.argv[1])
    config = load_config(None, settings["overrides"])
    torch.set_num_threads(1)
    model = build_model(config)
    island = build_island(config, model, CPU)
    text = build_text(config)
    with tempfile.TemporaryDirectory(prefix="lowcomm-speeds-") as folder:
        exchange = build_exchange(config, Path(folder) / "identity.key")
        outer = build_outer_loop(config, island, exchange, folder=None, clock=SystemClock())
        try:
            outer.connect(on_address=lambda address: _tell(event="address", address=address))
            outer.join()
            _tell(event="joined")
            sys.stdin.readline()
            work, wall_s = _train(config, island, outer, text, settings)
            outer.finish()
        finally:
            outer.close()
    losses = _evaluate(config, island, text, work.anchors)
    _tell(
        event="round",
        wall_s=wall_s,
        trained_s=work.trained_s,
        steps=work.steps,
        slowed_after=work.slowed_after,
        rounds=[{**one, "eval_loss": loss} for one, loss in zip(work.rounds, losses, strict=True)]
        if losses
        else list(work.rounds),
        digest=outer.digest,
    )


def _train(
    config: Config, island: Island, outer: OuterLoop, text: ShardedText, settings: dict[str, Any]
) -> tuple[_Work, float]:
    """Until the swarm has trained `train.tokens`; what was done, and the seconds that it took."""
    clock, never, work = SystemClock(), threading.Event(), _Work()
    inner, step_s = config.shared.inner, float(settings["step_s"])
    loader = Loader(
        text.shard(config.data.shard),
        context=config.shared.model.context,
        batch_size=config.train.batch_size,
        seed=config.shared.seed,
    )
    began_s, in_interval = clock.monotonic_s(), 0
    while outer.swarm_committed < config.train.tokens:
        if _slows_now(settings, work, outer, in_interval):
            step_s, work.slowed_after = step_s * settings["slow_by"], outer.outer_step
        step_began_s = clock.monotonic_s()
        done = outer.swarm_tokens + loader.batch_tokens - 1
        factor = lr_factor(done, config.train.tokens, inner.warmup_fraction, inner.final_lr_fraction)
        set_lr(island.optimizers, factor)
        inputs, targets = loader.next_batch()
        island.backward(island.model(inputs, targets))
        island.update(inner.clip_norm)
        never.wait(max(0.0, step_began_s + step_s - clock.monotonic_s()))
        work.trained_s += clock.monotonic_s() - step_began_s
        work.steps, in_interval = work.steps + 1, in_interval + 1
        for report in outer.step(loader.batch_tokens):
            in_interval = 0
            work.rounds.append(_round(report, clock.monotonic_s() - began_s))
            if settings["evaluates"]:
                work.anchors.append(outer.anchor())  # by reference: an anchor is replaced, never changed
    return work, clock.monotonic_s() - began_s


def _slows_now(settings: dict[str, Any], work: _Work, outer: OuterLoop, in_interval: int) -> bool:
    """In the middle of the interval after `slow_after` outer steps."""
    if settings["slow_after"] == 0 or work.slowed_after >= 0 or outer.outer_step < settings["slow_after"]:
        return False
    return bool(work.rounds) and 2 * in_interval >= int(str(work.rounds[-1]["next_inner_steps"]))


def _round(report: RoundReport, at_s: float) -> dict[str, Json]:
    return {
        "at_s": at_s,
        "outer_step": report.outer_step,
        "committed": report.committed,
        "reason": report.reason,
        "participants": len(report.participants),
        "inner_steps": report.inner_steps,
        "next_inner_steps": report.next_inner_steps,
        "total_tokens": report.total_tokens,
        "attempts": report.attempts,
        "wait_s": report.wait_s,
        "form_s": report.form_s,
        "transfer_s": report.transfer_s,
        "digest": report.digest,
    }


def _evaluate(
    config: Config, island: Island, text: ShardedText, anchors: Sequence[dict[str, Tensor]]
) -> list[float]:
    """The loss of each anchor on held-out text."""
    losses, parameters = [], dict(island.bare_model.named_parameters())
    for anchor in anchors:
        with torch.no_grad():
            for name, values in anchor.items():
                parameters[name].copy_(values)
        batches = eval_batches(
            text.holdout(),
            context=config.shared.model.context,
            num_windows=config.train.eval_windows,
            batch_size=32,
            name="the held-out text",
        )
        losses.append(mean_loss(island.bare_model, batches, CPU))
    return losses


def _tell(**event: Json) -> None:
    """One line for the bench."""
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    main()
