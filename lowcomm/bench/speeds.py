"""Islands of unlike speed: `lowcomm bench speeds`.

Three islands (processes on this machine, over the real swarm) train one small GPT at 1x, 2x and 4x the
speed, given by a timed wait in each inner step that is far above what the step computes. Measured for
`fixed` and `matched` schedules, to equal tokens of the whole swarm:

    idle share             1 - seconds in inner steps / wall time
    loss at equal time     of the anchor when the faster of the two runs has ended
    loss at equal tokens   of the anchor at the tokens that both have reached, interpolated between rounds

and, in a third run, after how many rounds the islands are due together again when one of them slows
down in the middle of an interval.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowcomm.algorithms.learning_rate import set_lr
from lowcomm.bench.outcome import Outcome, Tell
from lowcomm.bench.payload import LOOPBACK
from lowcomm.bench.peer import PROGRAM, Peer
from lowcomm.bench.settings import SpeedBench
from lowcomm.config.load import load_config
from lowcomm.config.schema import Config
from lowcomm.data.loader import open_loader
from lowcomm.errors import ExchangeError
from lowcomm.islands.base import Island
from lowcomm.launching.children import Children
from lowcomm.outer.loop import OuterLoop
from lowcomm.tasks.base import LOSS, Data, Task
from lowcomm.training.build import (
    build_exchange,
    build_island,
    build_lr_schedule,
    build_model,
    build_outer_loop,
    build_task,
)
from lowcomm.training.evaluation import evaluate
from lowcomm.types import Json, RoundReport

CPU = torch.device("cpu")
MODES = ("fixed", "matched")
SMALL_GPT = (
    "shared.model.dim=64", "shared.model.layers=2", "shared.model.heads=4", "shared.model.kv_heads=4",
    "shared.model.ffn_dim=176", f"shared.model.context={SpeedBench.CONTEXT}",
    f"train.batch_size={SpeedBench.BATCH}", "train.eval_windows=256", "shared.inner.final_lr_fraction=1.0",
)  # fmt: skip
"""The learning rate stays where it is after the warm-up, so that no run is favoured by where it ends."""

FOLLOWED = 1.5
"""Islands are due together if the steps planned for each take the same time up to so many of its steps."""


@dataclass(frozen=True, kw_only=True)
class SpeedRun:
    """One run: what each island says, by island."""

    mode: str
    islands: tuple[dict[str, Any], ...]

    @property
    def idle(self) -> list[float]:
        """Idle share of each island."""
        return [1.0 - one["trained_s"] / one["wall_s"] for one in self.islands]

    @property
    def intervals(self) -> list[list[int]]:
        """Inner steps of each contribution, by island."""
        return [[r["inner_steps"] for r in one["rounds"] if r["committed"]] for one in self.islands]

    @property
    def failures(self) -> list[str]:
        """Why rounds were not committed, of all islands."""
        return [r["reason"] for one in self.islands for r in one["rounds"] if not r["committed"]]

    @property
    def wall_s(self) -> float:
        """Of the slowest to end."""
        return float(max(one["wall_s"] for one in self.islands))

    @property
    def curve(self) -> list[tuple[float, int, float]]:
        """(seconds, tokens of all islands, loss of the anchor) after each round."""
        first = self.islands[0]["rounds"]
        return [(r["at_s"], r["total_tokens"], r["eval_loss"]) for r in first if r["committed"]]

    @property
    def equal_digests(self) -> bool:
        """Whether the outer states of all islands were the same bits after every round."""
        histories = [
            {r["outer_step"]: r["digest"] for r in one["rounds"] if r["committed"]} for one in self.islands
        ]
        return all(history == histories[0] for history in histories)

    def loss_at_time(self, seconds: float) -> float:
        """Of the newest anchor at that time."""
        done = [loss for at_s, _, loss in self.curve if at_s <= seconds]
        return done[-1] if done else float("inf")

    def loss_at_tokens(self, tokens: int) -> float:
        """Between the anchors before and after, in proportion."""
        for (_, low, before), (_, high, after) in pairwise(self.curve):
            if low <= tokens <= high:
                return before + (after - before) * (tokens - low) / max(1, high - low)
        return self.curve[-1][2]


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """The figures."""

    bench: SpeedBench
    runs: dict[str, SpeedRun] = field(default_factory=dict)

    HEADINGS: ClassVar[tuple[str, ...]] = ("run", "inner step", "inner steps per round", "idle share")

    @property
    def equal_time(self) -> tuple[float, dict[str, float]]:
        """The time, and the loss of each mode at it."""
        seconds = min(self.runs[mode].wall_s for mode in MODES)
        return seconds, {mode: self.runs[mode].loss_at_time(seconds) for mode in MODES}

    @property
    def equal_tokens(self) -> tuple[int, dict[str, float]]:
        """The tokens, and the loss of each mode at them."""
        tokens = min(self.runs[mode].curve[-1][1] for mode in MODES)
        return tokens, {mode: self.runs[mode].loss_at_tokens(tokens) for mode in MODES}

    @property
    def followed_after(self) -> int | None:
        """Rounds from the slowdown until all are planned to be due together again; None = never."""
        run, steps_s = self.runs["slowed"], self.bench.slowed_steps_s
        slowed_after = int(run.islands[self.bench.slow_island]["slowed_after"])
        planned: dict[int, list[int]] = {}
        for one in run.islands:
            for r in (r for r in one["rounds"] if r["committed"]):
                planned.setdefault(r["outer_step"], []).append(r["next_inner_steps"])
        for outer_step in sorted(step for step in planned if step > slowed_after):
            wanted = [self.bench.interval(i, steps_s) for i in range(len(steps_s))]
            steps = planned[outer_step]
            if len(steps) == len(wanted) and all(
                abs(a - b) < max(FOLLOWED, 0.1 * b) for a, b in zip(steps, wanted, strict=True)
            ):
                return outer_step - slowed_after
        return None

    def rows(self) -> list[tuple[str, ...]]:
        """Under `HEADINGS`."""
        return [
            (
                name,
                f"{1e3 * self.bench.steps_s[island]:.0f} ms",
                _series(run.intervals[island]),
                f"{share:.1%}",
            )
            for name, run in self.runs.items()
            for island, share in enumerate(run.idle)
        ]

    def to_dict(self) -> dict[str, Json]:
        """Plain values, for JSON."""
        seconds, by_time = self.equal_time
        tokens, by_tokens = self.equal_tokens
        return {
            "bench": self.bench.to_dict(),
            "idle_share": {name: list(run.idle) for name, run in self.runs.items()},
            "intervals": {name: [list(one) for one in run.intervals] for name, run in self.runs.items()},
            "equal_time": {"seconds": seconds, "loss": dict(by_time)},
            "equal_tokens": {"tokens": tokens, "loss": dict(by_tokens)},
            "followed_after_rounds": self.followed_after,
            "failures": {name: list(run.failures) for name, run in self.runs.items()},
            "equal_digests": {name: run.equal_digests for name, run in self.runs.items()},
            "wall_s": {name: run.wall_s for name, run in self.runs.items()},
            "curves": {mode: [list(point) for point in self.runs[mode].curve] for mode in MODES},
            "waits_s": {
                name: [[r["wait_s"] for r in one["rounds"]] for one in run.islands]
                for name, run in self.runs.items()
            },
        }


def run(bench: SpeedBench, tell: Tell) -> Outcome:
    """For `lowcomm bench speeds`."""
    result = measure_speeds(bench, tell)
    seconds, by_time = result.equal_time
    tokens, by_tokens = result.equal_tokens
    notes = []
    for when, by_mode in ((f"{seconds:.0f} s", by_time), (f"{tokens:,} tokens", by_tokens)):
        change = by_mode["matched"] / by_mode["fixed"] - 1
        fixed, matched = (f"{by_mode[mode]:.4f}" for mode in MODES)
        notes.append(f"loss after {when}: fixed {fixed}, matched {matched} ({change:+.2%})")
    notes.append(f"rounds until a slowdown of {bench.slow_by:g}x is followed: {result.followed_after}")
    return Outcome(
        log={"speeds": result.to_dict()}, headings=Speeds.HEADINGS, rows=result.rows(), notes=notes
    )


def measure_speeds(bench: SpeedBench, tell: Tell) -> Speeds:
    """Run `matched`, `fixed` and `slowed`.

    Args:
        tell: of each run as soon as it is over.

    Raises:
        ExchangeError: an island failed, stayed silent past the deadline, or committed no round.
    """
    runs: dict[str, SpeedRun] = {}
    for name, mode, rounds in (
        ("matched", "matched", bench.rounds),
        ("fixed", "fixed", bench.rounds),
        ("slowed", "matched", bench.slow_rounds),
    ):
        run = runs[name] = _run(bench, name, mode, rounds)
        tell(f"{name}: {run.wall_s:.0f} s, idle {', '.join(f'{share:.1%}' for share in run.idle)}")
        for reason in run.failures:
            tell(f"{name}: a round was not committed: {reason}")
    return Speeds(bench=bench, runs=runs)


def _run(bench: SpeedBench, name: str, mode: str, rounds: int) -> SpeedRun:
    overrides = [
        *SMALL_GPT,
        "shared.run_id=bench-speeds",
        f"shared.seed={bench.seed}",
        f"shared.data.shards={len(bench.steps_s)}",
        f"shared.schedule.inner_steps={bench.inner_steps}",
        f"shared.schedule.mode={mode}",
        f"shared.round.min_participants={len(bench.steps_s)}",
        f"shared.round.deadline_s={bench.deadline_s}",
        f"train.tokens={rounds * bench.tokens}",
        f"exchange.expected_peers={len(bench.steps_s)}",
        f"exchange.listen=['{LOOPBACK}']",
        "exchange.lease_s=30",
    ]
    joined: list[str] = []
    run_s = rounds * bench.inner_steps * max(bench.steps_s) * bench.slow_by
    with Children(PROGRAM, "speeds", deadline_s=bench.deadline_s + run_s) as peers:
        for number, step_s in enumerate(bench.steps_s):
            slows = name == "slowed" and number == bench.slow_island
            own: list[Json] = [*overrides, *joined, f"data.shard={number}"]
            peers.start(
                {
                    "overrides": own,
                    "step_s": step_s,
                    "evaluates": number == 0,
                    "slow_after": bench.slow_rounds // 3 if slows else 0,
                    "slow_by": bench.slow_by,
                }
            )
            address = peers.wait_for(number, "address")["address"]
            joined = joined or [f"exchange.initial_peers=['{address}']"]
        for number in range(len(bench.steps_s)):
            peers.wait_for(number, "joined")
        run = SpeedRun(mode=mode, islands=tuple(peers.round()))
    if not all(run.intervals):
        raise ExchangeError(f"bench speeds, {name}: an island has committed no round: {run.failures}")
    return run


def _series(steps: Sequence[int]) -> str:
    """`8, 32 x 5`: equal neighbours are counted."""
    parts: list[list[int]] = []
    for value in steps:
        if parts and parts[-1][0] == value:
            parts[-1][1] += 1
        else:
            parts.append([value, 1])
    return ", ".join(f"{value} x {count}" if count > 1 else str(value) for value, count in parts)


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


def take_part(peer: Peer) -> None:
    """Train a small GPT, slowed by a timed wait, from the bench's word on; evaluate its anchors then."""
    settings = peer.settings
    config = load_config(None, settings["overrides"])
    torch.set_num_threads(1)
    task = build_task(config)
    island, data = build_island(config, build_model(config, task), CPU), task.data()
    with tempfile.TemporaryDirectory(prefix="lowcomm-speeds-") as folder:
        exchange = build_exchange(config, Path(folder) / "identity.key")
        outer = build_outer_loop(config, island, exchange, folder=None, clock=peer.clock)
        with contextlib.closing(outer):
            peer.join(outer)
            peer.tell("joined")
            peer.hear()
            work, wall_s = _train(peer, config, island, outer, data)
            outer.finish()
    losses = _evaluate(config, island, task, data, work.anchors)
    peer.tell(
        "round",
        wall_s=wall_s,
        trained_s=work.trained_s,
        steps=work.steps,
        slowed_after=work.slowed_after,
        rounds=[{**one, "eval_loss": loss} for one, loss in zip(work.rounds, losses, strict=True)]
        if losses
        else list(work.rounds),
        digest=outer.digest,
    )


def _train(peer: Peer, config: Config, island: Island, outer: OuterLoop, data: Data) -> tuple[_Work, float]:
    """Until the swarm has trained `train.tokens`; what was done, and the seconds that it took."""
    settings, clock, work = peer.settings, peer.clock, _Work()
    clip_norm, step_s = config.shared.inner.clip_norm, float(settings["step_s"])
    schedule = build_lr_schedule(config)
    loader = open_loader(data.training(config.data.shard), batch_size=config.train.batch_size)
    began_s, in_interval = clock.monotonic_s(), 0
    while outer.swarm_committed < config.train.tokens:
        if _slows_now(settings, work, outer, in_interval):
            step_s, work.slowed_after = step_s * settings["slow_by"], outer.outer_step
        step_began_s = clock.monotonic_s()
        done = outer.swarm_tokens + loader.batch_tokens - 1
        set_lr(island.optimizers, schedule.factor(done, config.train.tokens))
        inputs, targets = loader.next_batch()
        island.backward(island.model(inputs, targets))
        island.update(clip_norm)
        peer.wait(step_began_s + step_s - clock.monotonic_s())
        work.trained_s += clock.monotonic_s() - step_began_s
        work.steps, in_interval = work.steps + 1, in_interval + 1
        for report in outer.step(loader.batch_tokens):
            in_interval = 0
            work.rounds.append(_round(report, clock.monotonic_s() - began_s))
            if settings["evaluates"]:
                work.anchors.append(outer.anchor())  # by reference: an anchor is replaced, never changed
    return work, clock.monotonic_s() - began_s


def _slows_now(settings: Mapping[str, Any], work: _Work, outer: OuterLoop, in_interval: int) -> bool:
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
    config: Config, island: Island, task: Task, data: Data, anchors: Sequence[dict[str, Tensor]]
) -> list[float]:
    """The loss of each anchor on held-out text."""
    losses, parameters = [], dict(island.bare_model.named_parameters())
    for anchor in anchors:
        with torch.no_grad():
            for name, values in anchor.items():
                parameters[name].copy_(values)
        batches = data.evaluation(config.train.eval_windows, 32)
        losses.append(evaluate(task, island.bare_model, batches, CPU)[LOSS])
    return losses
