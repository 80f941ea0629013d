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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

from lowcomm.bench.children import Children
from lowcomm.errors import ExchangeError
from lowcomm.types import Json

MODES = ("fixed", "matched")
LISTEN = "/ip4/127.0.0.1/tcp/0"
CONTEXT, BATCH = 64, 4
SMALL_GPT = (
    "shared.model.dim=64", "shared.model.layers=2", "shared.model.heads=4", "shared.model.kv_heads=4",
    "shared.model.ffn_dim=176", f"shared.model.context={CONTEXT}", f"train.batch_size={BATCH}",
    "train.eval_windows=256", "shared.inner.final_lr_fraction=1.0",
)  # fmt: skip
"""The learning rate stays where it is after the warm-up, so that no run is favoured by where it ends."""

FOLLOWED = 1.5
"""Islands are due together if the steps planned for each take the same time up to so many of its steps."""


@dataclass(frozen=True, kw_only=True)
class SpeedBench:
    """What is measured.

    Attributes:
        steps_s: seconds of an inner step of each island; the wait makes up what computing doesn't take.
        inner_steps: H.
        rounds: that `matched` takes; the other runs train the same tokens.
        slow_rounds: of the run in which one slows down.
        slow_island, slow_by: which one, and how many times.
        deadline_s: longest wait of and for an island.
    """

    steps_s: tuple[float, ...] = (0.15, 0.3, 0.6)
    inner_steps: int = 24
    rounds: int = 64
    slow_rounds: int = 12
    slow_island: int = 0
    slow_by: float = 4.0
    seed: int = 0
    deadline_s: float = 300.0

    def interval(self, island: int, steps_s: Sequence[float]) -> float:
        """Inner steps of an island in the time that the fastest takes for H."""
        return self.inner_steps * min(steps_s) / steps_s[island]

    @property
    def tokens(self) -> int:
        """Of a round in which all are due together."""
        steps = sum(int(self.interval(island, self.steps_s) + 0.25) for island in range(len(self.steps_s)))
        return steps * CONTEXT * BATCH

    @property
    def slowed_steps_s(self) -> tuple[float, ...]:
        """`steps_s` after one has slowed down."""
        factors = [self.slow_by if i == self.slow_island else 1.0 for i in range(len(self.steps_s))]
        return tuple(step_s * factor for step_s, factor in zip(self.steps_s, factors, strict=True))


@dataclass(frozen=True, kw_only=True)
class SpeedRun:
    """One run: what each island says (see `lowcomm.bench.speed_island`), by island."""

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
            "bench": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self.bench).items()},
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


def measure_speeds(bench: SpeedBench, *, on_run: Callable[[str, SpeedRun], None]) -> Speeds:
    """Run `matched`, `fixed` and `slowed`.

    Args:
        on_run: told of each run as soon as it is over.

    Raises:
        ExchangeError: an island failed, stayed silent past the deadline, or committed no round.
    """
    runs: dict[str, SpeedRun] = {}
    for name, mode, rounds in (
        ("matched", "matched", bench.rounds),
        ("fixed", "fixed", bench.rounds),
        ("slowed", "matched", bench.slow_rounds),
    ):
        runs[name] = _run(bench, name, mode, rounds)
        on_run(name, runs[name])
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
        f"exchange.listen=['{LISTEN}']",
        "exchange.lease_s=30",
    ]
    joined: list[str] = []
    run_s = rounds * bench.inner_steps * max(bench.steps_s) * bench.slow_by
    with Children("lowcomm.bench.speed_island", deadline_s=bench.deadline_s + run_s) as children:
        for number, step_s in enumerate(bench.steps_s):
            slows = name == "slowed" and number == bench.slow_island
            own: list[Json] = [*overrides, *joined, f"data.shard={number}"]
            children.start(
                {
                    "overrides": own,
                    "step_s": step_s,
                    "evaluates": number == 0,
                    "slow_after": bench.slow_rounds // 3 if slows else 0,
                    "slow_by": bench.slow_by,
                }
            )
            address = children.wait_for(number, "address")["address"]
            joined = joined or [f"exchange.initial_peers=['{address}']"]
        for number in range(len(bench.steps_s)):
            children.wait_for(number, "joined")
        run = SpeedRun(mode=mode, islands=tuple(children.round()))
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
