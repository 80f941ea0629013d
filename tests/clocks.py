"""A clock for tests."""

from __future__ import annotations


class HandClock:
    """Stands until it is moved.

    Attributes:
        now_s: what both clocks show.
    """

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.now_s
