"""When a silence is too long: judged by the silences before it, not by a guess.

A silence is too long at `FACTOR` times the longest recent one (an accrual failure detector, Hayashibara et
al. 2004, with the maximum in the place of a distribution), never sooner than `least_s` and never later
than `most_s`. Time in which the observer itself stood still is not held against anybody.
"""

from __future__ import annotations

FACTOR = 2.0
HALF_LIFE_S = 120.0
"""After so long a silence counts half."""
BEATS_NEEDED = 3
WARM_UP = 4.0
"""Until so many beats, over so many times `least_s`, have been seen, `most_s` holds."""


class AdaptiveTimeout:
    """The signs of life of one peer, or of one transfer.

    Args:
        least_s, most_s: bounds of the silence that is tolerated.
        now_s: the observer's clock.
    """

    def __init__(self, least_s: float, most_s: float, now_s: float) -> None:
        self._least_s, self._most_s = min(least_s, most_s), most_s
        self._began_s = self._heard_s = self._looked_s = now_s
        self._longest_s = self._silent_s = 0.0
        self._beats = 0

    def beat(self, now_s: float) -> None:
        """A sign of life."""
        silence_s = now_s - self._heard_s
        self._longest_s = max(silence_s, self._longest_s * 0.5 ** (silence_s / HALF_LIFE_S))
        self._beats += 1
        self.resume(now_s)

    def resume(self, now_s: float) -> None:
        """Listen from now on; what was before this was no silence."""
        self._heard_s = self._looked_s = now_s
        self._silent_s = 0.0

    def wait(self, now_s: float, most_s: float) -> None:
        """From now on an answer is waited for; of the silence before, at most `most_s` counts."""
        self._heard_s = max(self._heard_s, now_s - most_s)
        self._silent_s, self._looked_s = now_s - self._heard_s, now_s

    @property
    def limit_s(self) -> float:
        """The silence that is tolerated now."""
        warm = self._beats >= BEATS_NEEDED and self._heard_s - self._began_s >= WARM_UP * self._least_s
        return min(self._most_s, max(self._least_s, FACTOR * self._longest_s)) if warm else self._most_s

    def look(self, now_s: float, longest_step_s: float) -> bool:
        """Whether the silence has become too long; call it often.

        Args:
            longest_step_s: what is counted at most between two looks, as the observer may have stood still.
        """
        self._silent_s += min(longest_step_s, now_s - self._looked_s)
        self._looked_s = now_s
        return self._silent_s > self.limit_s
