"""What the plots show, as arrays: losses over tokens and bytes, rounds over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowcomm.report.runs import IslandRun, Line, Run

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One curve; `x` and `y` are 1-D of equal length, non-finite values left out."""

    label: str
    x: Array
    y: Array


def loss_over_tokens(run: Run) -> list[Curve]:
    """Each island's training loss (nats per token) over the tokens of all islands."""
    return [
        _curve(island.name, _tokens_at(run, island.train), column(island.train, "loss"))
        for island in run.islands
    ]


def loss_over(run: Run, x_key: str) -> list[Curve]:
    """Each island's training loss over a field of its lines, such as `inner_step` or `time_s`."""
    return [
        _curve(island.name, column(island.train, x_key), column(island.train, "loss"))
        for island in run.islands
    ]


def over_steps(run: Run, key: str, scale: float = 1.0) -> list[Curve]:
    """A field of each island's train lines, times `scale`, over the inner steps; where it is there."""
    curves = (
        _curve(island.name, column(island.train, "inner_step"), column(island.train, key) * scale)
        for island in run.islands
    )
    return [curve for curve in curves if len(curve.x)]


def loss_over_bytes(run: Run) -> list[Curve]:
    """Each island's mean training loss after each outer step, over the bytes that it had sent by then."""
    curves = []
    for island in run.islands:
        by_step: dict[int, list[Line]] = {}
        for line in island.train:
            by_step.setdefault(int(line.get("outer_step", 0)), []).append(line)
        points = [lines for step, lines in sorted(by_step.items()) if step > 0]
        sent = np.array([column(lines, "bytes_sent")[0] for lines in points], dtype=np.float64)
        loss = np.array([column(lines, "loss").mean() for lines in points], dtype=np.float64)
        curves.append(_curve(island.name, sent, loss))
    return curves


def eval_curve(run: Run, x_key: str) -> Curve:
    """The evaluation loss of the anchor over the same; of the island that evaluated most often."""
    island = max(run.islands, key=lambda island: len(island.evals))
    if x_key == "tokens":
        x = _tokens_at(run, island.evals)
    else:
        x = column(island.evals, x_key)
    return _curve("evaluation", x, column(island.evals, "eval_loss"))


def _tokens_at(run: Run, lines: Sequence[Line]) -> Array:
    """Tokens of all islands at these lines of one."""
    of_swarm = column(lines, "swarm_tokens")
    if run.equal_steps and (run.complete or not np.isfinite(of_swarm).any()):
        return tokens_of_all(run, column(lines, "inner_step"))
    return of_swarm


def tokens_of_all(run: Run, inner_steps: Array) -> Array:
    """Tokens that all islands together had trained on at these inner steps (global progress)."""
    total = np.zeros_like(inner_steps)
    for island in run.islands:
        if island.train:
            known = column(island.train, "inner_step")
            total += np.interp(inner_steps, known, column(island.train, "tokens"), left=0.0)
    return total


def smooth(values: Array, points: int) -> Array:
    """A moving mean over `points` values around each, over those that there are at both ends."""
    if points <= 1 or len(values) < 3:
        return values
    sums = np.concatenate(([0.0], np.cumsum(values)))
    index = np.arange(len(values))
    first = np.maximum(index - points // 2, 0)
    last = np.minimum(index + points // 2 + 1, len(values))
    return np.asarray((sums[last] - sums[first]) / (last - first), dtype=np.float64)


def column(lines: Sequence[Line], key: str) -> Array:
    """One field of all lines as numbers; NaN where it is missing or no number."""
    return np.array([_number(line.get(key)) for line in lines], dtype=np.float64)


def committed(island: IslandRun) -> list[Line]:
    """The round lines of what was committed."""
    return [line for line in island.rounds if line.get("committed")]


def failed(island: IslandRun) -> list[Line]:
    """The round lines of what was not."""
    return [line for line in island.rounds if not line.get("committed")]


def _curve(label: str, x: Array, y: Array) -> Curve:
    finite = np.isfinite(x) & np.isfinite(y)
    return Curve(label=label, x=x[finite], y=y[finite])


def _number(value: object) -> float:
    if isinstance(value, (int, float)):
        return float(value)
    return float("nan")
