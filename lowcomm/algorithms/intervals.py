"""How many inner steps each island takes until its next round, where islands are unlike in speed.

DyLU (Liu et al. 2024, arXiv:2401.09135): worker i takes H_i = floor(v_i / max(v) * H) inner steps, so
that all are due together and none waits for the slowest; v is measured and follows the worker. Here all
modes first say how long the interval lasts, and each island then takes the steps that fit into it:

    matched   T = H * min(step_s)                  the fastest takes H, the others fewer
    timed     T = round_s,  or  T = round_tokens / sum(step_tokens / step_s)
    H_i       = floor(T / step_s_i + SLACK), at least 1 and more than the delay

`step_s` is the time of an inner step without the time that training stood still for rounds, and
`step_tokens` what the island trains on in it. The speeds are those of the committed roster, so all
participants derive their intervals from the same numbers. Contributions are weighted by tokens, so that
an island that takes fewer steps counts for less.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lowcomm.algorithms.schedule import Schedule
from lowcomm.types import PeerId

SLACK = 0.25
"""An island may be due so much of one of its own steps later than the others."""

MAX_UNLIKE = 64.0
"""Speeds count up to so many times the median, so that a peer that claims too much does not make the
others exchange after every step."""

MAX_STEP_S = 1e6


class Speed(NamedTuple):
    """How fast an island trains: seconds of an inner step without waits, and tokens in it."""

    step_s: float
    step_tokens: int

    @property
    def tokens_per_s(self) -> float:
        """0 where it is not known."""
        return self.step_tokens / self.step_s if self.step_s > 0.0 else 0.0


UNMEASURED = Speed(0.0, 0)


@dataclass(frozen=True, slots=True)
class Interval:
    """From one contribution of an island to its next.

    Attributes:
        steps: inner steps.
        seconds: of training; once they have passed, the island doesn't keep others waiting. 0 = not known.
    """

    steps: int
    seconds: float


def next_interval(schedule: Schedule, speeds: Mapping[PeerId, Speed], me: PeerId) -> Interval:
    """The interval of island `me` after a round with these participants.

    An island that has not been measured takes H steps, or as many as it gets done until others are due.
    """
    known = {peer: speed for peer, speed in speeds.items() if speed.step_s > 0.0}
    if not known:
        return Interval(schedule.inner_steps, 0.0)
    least_s = statistics.median_high(speed.step_s for speed in known.values()) / MAX_UNLIKE
    steps_s = {peer: max(least_s, speed.step_s) for peer, speed in known.items()}
    if schedule.mode == "matched":
        seconds = schedule.inner_steps * min(steps_s.values())
    elif schedule.round_s > 0.0:
        seconds = schedule.round_s
    else:
        rate = sum(speed.step_tokens / steps_s[peer] for peer, speed in known.items())
        seconds = schedule.round_tokens / rate if rate > 0.0 else 0.0
    if me not in steps_s or seconds == 0.0:
        return Interval(schedule.inner_steps, seconds)
    least = 1 + (0 if schedule.delay == "auto" else schedule.delay)
    return Interval(max(least, math.floor(seconds / steps_s[me] + SLACK)), seconds)


def furthest(inner_steps: Sequence[int]) -> int:
    """Where the swarm stands, of what its islands say; 0 if there is none.

    The second furthest of three or more: a single one that lies must not send others to the end.
    """
    ordered = sorted(inner_steps, reverse=True)
    return ordered[1 if len(ordered) > 2 else 0] if ordered else 0
