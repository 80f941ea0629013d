"""The only place that reads the machine's clocks, so that a simulator can replace them."""

from __future__ import annotations

import time
from pathlib import Path
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


def asleep_s() -> float:
    """Seconds for which this machine has been suspended, since it booted; 0 where nobody can tell."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(boottime) - time.clock_gettime(time.CLOCK_MONOTONIC) if boottime else 0.0


def process_cpu_s() -> float:
    """Processor seconds that this process has used, in all of its threads."""
    return time.process_time()


def thread_cpu_s() -> float:
    """Processor seconds that this thread has used."""
    return time.thread_time()


def threads_cpu_s() -> dict[int, float]:
    """Processor seconds of each thread of this process, by its id at the kernel; Linux only, else empty."""
    used = {}
    for task in Path("/proc/self/task").glob("*/schedstat"):
        try:
            used[int(task.parent.name)] = int(task.read_text().split()[0]) / 1e9
        except OSError:  # the thread has just ended
            continue
    return used
