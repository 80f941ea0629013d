"""All islands of one run on this machine: started, watched to their end, and asked to leave by a signal."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from lowcomm.clock import Clock
from lowcomm.errors import LowcommError
from lowcomm.interrupts import Asked, handling
from lowcomm.launching.islands import (
    FINISHED,
    STOPPED,
    IslandProcess,
    IslandStartError,
    LaunchPlan,
    start_islands,
)

POLL_S = 0.2
GRACE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class LaunchResult:
    """How the islands ended.

    Attributes:
        codes: an exit code per island that was started; negative = ended by that signal.
        failures: what to tell of those that failed.
        interrupted: whether Ctrl-C ended the run.
        wall_s: from the first start to the last end.
    """

    codes: tuple[int, ...]
    failures: tuple[str, ...]
    interrupted: bool
    wall_s: float


class Watcher(Protocol):
    """Is told what happens."""

    def show(self, islands: Sequence[IslandProcess]) -> None:
        """Time has passed."""

    def stopping(self) -> None:
        """The islands are asked to leave."""


class Unwatched:
    """Nobody looks."""

    def show(self, islands: Sequence[IslandProcess]) -> None:
        """See `Watcher`."""

    def stopping(self) -> None:
        """See `Watcher`."""


def launch(
    plan: LaunchPlan, clock: Clock, watcher: Watcher | None = None, *, together: bool = False
) -> LaunchResult:
    """Run a plan to its end; a signal saves and stops all islands, a second Ctrl-C kills them.

    Args:
        together: whether an island that fails stops the others.

    Raises:
        ConfigError: the plan can't work.
        StorageError: a run folder can't be made.
    """
    plan.check()
    session = _Session(plan, clock, watcher or Unwatched(), together)
    began_s = clock.monotonic_s()
    with handling(session.on_signal):
        try:
            session.start()
            session.watch()
        finally:
            session.close()
    return LaunchResult(
        codes=tuple(island.code or 0 for island in session.islands),
        failures=tuple(session.failures()),
        interrupted=session.signals.to_leave,
        wall_s=clock.monotonic_s() - began_s,
    )


def train_together(plan: LaunchPlan, clock: Clock) -> None:
    """Run a plan that is worth nothing unless all islands come to their end.

    Raises:
        ConfigError, StorageError: see `launch`.
        LowcommError: an island failed; it says what its log ends with.
        KeyboardInterrupt: a signal asked to leave; the islands have left.
    """
    result = launch(plan, clock, together=True)
    if result.interrupted:
        raise KeyboardInterrupt
    if result.failures:
        raise LowcommError(result.failures[0])


class _Session:
    """The processes of one launch."""

    def __init__(self, plan: LaunchPlan, clock: Clock, watcher: Watcher, together: bool) -> None:
        self.islands: list[IslandProcess] = []
        self.signals = Asked(clock)
        self._plan, self._clock, self._watcher, self._together = plan, clock, watcher, together
        self._start_failure = ""
        self._give_up_s = math.inf
        self._pause = threading.Event()

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Count a signal; `tick` acts on it, outside of the handler."""
        self.signals.take(number)

    def start(self) -> None:
        """Start all islands; if the first one can't be reached, ask it to end."""
        try:
            start_islands(self._plan, self._clock, self.islands.append, self.tick)
        except IslandStartError as error:
            self._start_failure = str(error)

    def watch(self) -> None:
        """Wait until all have ended."""
        while any(island.code is None for island in self.islands):
            self.tick()
        self._watcher.show(self.islands)

    def tick(self) -> bool:
        """Wait a moment, act on Ctrl-C; whether all goes on."""
        self._watcher.show(self.islands)
        self._pause.wait(POLL_S)
        ending = self.signals.to_leave or bool(self._start_failure or (self._together and self._failed()))
        if ending and self._give_up_s == math.inf:
            self._give_up_s = self._clock.monotonic_s() + GRACE_S
            for island in self.islands:
                island.interrupt()
            self._watcher.stopping()
        if self.signals.at_once or self._clock.monotonic_s() > self._give_up_s:
            self.close()
        return not ending

    def close(self) -> None:
        """End what still runs."""
        for island in self.islands:
            island.kill()

    def failures(self) -> list[str]:
        """What to tell of the islands that failed."""
        if self._start_failure:
            return [self._start_failure]
        return [island.explain() for island in self._failed()]

    def _failed(self) -> list[IslandProcess]:
        fine = {None, FINISHED, STOPPED}
        if self._give_up_s < math.inf:
            fine.add(-signal.SIGTERM)  # asked before it could listen: there was nothing to save
        return [island for island in self.islands if island.code not in fine]
