"""How many inner steps a round is given before its result is used, measured: `delay = "auto"`.

The smallest delay that hides the rounds as they have been lately: what the slowest of the last ones took
over what an inner step takes, and a quarter more; while few have been timed, more than that, as the slowest
of few says little of the next one. More delay would only make the merged anchor staler
(Streaming DiLoCo, arXiv:2501.18512, section 3.2).
"""

from __future__ import annotations

import math
from collections import deque

_ROUNDS = 8
_MARGIN = 1.25
_UNSURE = 1.0
"""What is added to the margin, over the number of rounds that have been timed."""
_FIRST_SHARE = 0.5
"""Of the most possible, before any round has been timed: one round that is merged late costs less than one
that is waited for."""
_ROUNDING = 1e-9


class AutoDelay:
    """Remembers how long the last rounds of one island took; on its lead."""

    def __init__(self) -> None:
        self._rounds_s: deque[float] = deque(maxlen=_ROUNDS)

    def round_took(self, seconds: float) -> None:
        """A round that was committed took so long, from the pseudo-gradient to the new anchor."""
        self._rounds_s.append(seconds)

    def delay(self, step_s: float, most: int) -> int:
        """Inner steps for the next round, 0..most.

        Args:
            step_s: of an inner step; 0 = not known.
            most: a result is used before its fragment is due again.
        """
        if not self._rounds_s or step_s <= 0.0:
            return int(_FIRST_SHARE * most)
        margin = _MARGIN + (_UNSURE / len(self._rounds_s) if len(self._rounds_s) < _ROUNDS else 0.0)
        return min(most, math.ceil(margin * max(self._rounds_s) / step_s - _ROUNDING))
