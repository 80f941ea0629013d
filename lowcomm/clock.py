"""The only place that reads the machine's clocks, so that a simulator can replace them."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds, from a clock that never goes back and from the calendar."""

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary moment; never goes back."""
        ...

    def wall_s(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        ...


class SystemClock:
    """The clocks of this machine."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()


def process_cpu_s() -> float:
    """Processor seconds that this process has used, in all of its threads."""
    return time.process_time()
