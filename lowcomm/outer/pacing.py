"""When this island's fragments are due, and how fast it trains.

With `fixed` the inner step says it. With `matched` and `timed` each fragment has an interval, fixed
anew by every round that commits (`lowcomm.algorithms.intervals`): it is due when its steps are done; or
earlier, when its time has passed and either the others are ready (`matched`) or it is to keep the time
(`timed`). So an island that slows down in mid-interval contributes what it has, and is waited for no
longer than one of its steps; its new speed goes with that contribution. Before the first round nothing
is known: the fastest takes H steps, and the others answer as soon as it is ready.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from lowcomm.algorithms.intervals import SLACK, UNMEASURED, Interval, Speed, next_interval
from lowcomm.algorithms.schedule import Schedule
from lowcomm.clock import Clock
from lowcomm.types import PeerId

_STEPS_TIMED = 64
"""The speed is the median of at most so many steps, those of the interval that ends: the evaluation or
the checkpoint between two steps does not make an island slow."""

_LOOKS = 8
"""Several ranks agree so many times in an interval on whether they are waited for; one rank looks always."""


@dataclass(slots=True)
class _Running:
    """The interval of one fragment: from which inner step, since when (in seconds trained), how long.

    `fresh`: inner steps before its latest contribution since any contribution of the island.
    """

    began_step: int
    began_s: float
    interval: Interval
    fresh: int = 0


class Pacing:
    """Equal on all ranks of an island, but for what is measured: only the lead's clock counts.

    Args:
        ranks: of the island.
    """

    def __init__(self, schedule: Schedule, fragments: int, ranks: int, clock: Clock) -> None:
        self._schedule, self._ranks, self._clock = schedule, ranks, clock
        self._running = [
            _Running(0, 0.0, Interval(schedule.offset(fragment), 0.0)) for fragment in range(fragments)
        ]
        self._steps_s: deque[float] = deque(maxlen=_STEPS_TIMED)
        self._trained_s = 0.0
        self._fresh = 0
        self._step_tokens = 0
        self._step_began_s: float | None = None

    @property
    def fixed(self) -> bool:
        """Whether all islands take the same number of steps."""
        return self._schedule.mode == "fixed"

    # -- measuring ---------------------------------------------------------------------------------

    def step_ends(self, tokens: int) -> None:
        """An inner step was taken; what follows is the outer loop's own time."""
        if self._step_began_s is not None:
            took_s = self._clock.monotonic_s() - self._step_began_s
            self._steps_s.append(took_s)
            self._trained_s += took_s
        self._step_tokens = tokens
        self._fresh += 1

    def step_begins(self) -> None:
        """The next inner step may start."""
        self._step_began_s = self._clock.monotonic_s()

    def speed(self, steps: int) -> Speed:
        """As measured over the last `steps` inner steps."""
        latest = list(self._steps_s)[-max(1, steps) :]
        return Speed(statistics.median(latest), self._step_tokens) if latest else UNMEASURED

    # -- due ---------------------------------------------------------------------------------------

    def due(self, inner_step: int) -> tuple[int, ...]:
        """Fragments whose steps are done."""
        if self.fixed:
            return self._schedule.due(inner_step)
        return tuple(
            fragment
            for fragment, running in enumerate(self._running)
            if inner_step - running.began_step >= running.interval.steps
        )

    def looks(self, inner_step: int) -> bool:
        """Whether all ranks look now for what may be due before its steps are done."""
        if self.fixed or self._ranks == 1:
            return not self.fixed
        return any(
            (inner_step - running.began_step) % max(1, running.interval.steps // _LOOKS) == 0
            for running in self._running
        )

    def early(self, fragment: int, called: bool) -> bool:
        """Whether a fragment is due although its steps are not done. On the lead.

        Args:
            called: whether other islands are ready.
        """
        if self.fixed or not (self._schedule.mode == "timed" or called):
            return False
        running = self._running[fragment]
        if running.interval.seconds == 0.0:
            return called
        step_s = self._steps_s[-1] if self._steps_s else 0.0
        return self._trained_s - running.began_s + SLACK * step_s >= running.interval.seconds

    def begin(self, fragment: int, inner_step: int) -> int:
        """A contribution is made; the next interval begins. Returns how many steps this one had."""
        running = self._running[fragment]
        steps = inner_step - running.began_step
        running.began_step, running.began_s = inner_step, self._trained_s
        running.fresh, self._fresh = self._fresh, 0
        return steps

    def plan(self, speeds: Mapping[PeerId, Speed], me: PeerId) -> Interval | None:
        """The interval that follows from a committed round; None = as before."""
        return next_interval(self._schedule, speeds, me) if speeds and not self.fixed else None

    def take(self, fragment: int, interval: Interval) -> None:
        """The interval under way is to be this long.

        The first one that is known also says when the fragments after it are due for the first time.
        """
        this, schedule = self._running[fragment], self._schedule
        this.interval = interval
        for later in range(fragment + 1, len(self._running)):
            other = self._running[later]
            if other.interval.seconds == 0.0 and other.began_step <= this.began_step:
                part = (schedule.offset(later) - schedule.offset(fragment)) / schedule.inner_steps
                steps = this.began_step - other.began_step + math.floor(part * interval.steps + SLACK)
                seconds = this.began_s - other.began_s + part * interval.seconds
                other.interval = Interval(steps, seconds)

    def late_steps(self, fragment: int, late_s: float, step_s: float) -> int:
        """How many steps this island has taken while others stood and waited for its contribution.

        On the lead. With a delay they have not stood still. Where it stood still itself, for another
        fragment, it has taken none.

        Args:
            late_s: others had been ready for so long.
        """
        if self.fixed or self._schedule.delay != 0 or step_s <= 0.0:
            return 0
        return min(self._running[fragment].fresh, round(late_s / step_s))

    def put_off(self, steps: int, but: int) -> None:
        """All fragments but one are due so much later, as they are elsewhere: the others have waited."""
        for fragment, running in enumerate(self._running):
            if fragment != but and steps:
                seconds = running.interval.seconds
                longer = seconds * (1 + steps / max(1, running.interval.steps))
                running.interval = Interval(running.interval.steps + steps, longer)

    def steps_of(self, fragment: int) -> int:
        """Planned inner steps of the interval under way."""
        return self._schedule.inner_steps if self.fixed else self._running[fragment].interval.steps

    def shift(self, steps: int) -> None:
        """The island's count of inner steps has jumped ahead."""
        for running in self._running:
            running.began_step += steps

    # -- saving ------------------------------------------------------------------------------------

    def state_dict(self) -> list[list[float]]:
        """For a checkpoint."""
        return [[r.began_step, r.interval.steps, r.interval.seconds] for r in self._running]

    def load_state_dict(self, state: list[list[float]]) -> None:
        """Restore `state_dict`."""
        self._running = [
            _Running(int(began_step), 0.0, Interval(int(steps), seconds))
            for began_step, steps, seconds in state
        ]
