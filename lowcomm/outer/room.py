"""How many inner steps a round is given before its result is used, measured: `delay = "auto"`.

The smallest delay that hides the rounds as they have been lately: what the slowest of the last ones took
over what an inner step takes, and a quarter more. More delay would only make the merged anchor staler
(Streaming DiLoCo, arXiv:2501.18512, section 3.2).
"""

from __future__ import annotations

import math
from collections import deque

from lowcomm.clock import Clock

_ROUNDS = 8
_MARGIN = 1.25
_FIRST_SHARE = 0.5
"""Of the most possible, before any round has been timed: one round that is merged late costs less than one
that is waited for."""

_STEP_KEPT = 0.9
"""Weight of what was known of the step time before."""


class Room:
    """Times inner steps and rounds of one island; on its lead.

    Args:
        most: the delay never exceeds this; below H, as a result is used before its fragment is due again.
    """

    def __init__(self, clock: Clock, most: int) -> None:
        self._clock, self._most = clock, most
        self._rounds_s: deque[float] = deque(maxlen=_ROUNDS)
        self._step_s: float | None = None
        self._step_began_s: float | None = None

    def step_ends(self) -> None:
        """An inner step was taken; what follows is the outer loop's own time."""
        if self._step_began_s is not None:
            took_s = self._clock.monotonic_s() - self._step_began_s
            known_s = took_s if self._step_s is None else self._step_s
            self._step_s = _STEP_KEPT * known_s + (1 - _STEP_KEPT) * took_s

    def step_begins(self) -> None:
        """The next inner step may start."""
        self._step_began_s = self._clock.monotonic_s()

    def round_took(self, seconds: float) -> None:
        """A round that was committed took so long, from the pseudo-gradient to the new anchor."""
        self._rounds_s.append(seconds)

    @property
    def delay(self) -> int:
        """Inner steps for the next round, 0..most."""
        if not self._rounds_s or not self._step_s:
            return int(_FIRST_SHARE * self._most)
        return min(self._most, math.ceil(_MARGIN * max(self._rounds_s) / self._step_s - 1e-9))
