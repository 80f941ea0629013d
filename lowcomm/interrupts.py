"""The signals that ask to leave: the first one asks, a person's second Ctrl-C ends at once.

One cause often brings several. `systemctl stop` and a reboot send SIGTERM to every process of a run, and
torchrun and `lowcomm launch` hand on what they get; a terminal that closes sends SIGHUP twice, by the kernel
and by the shell. All of them together ask once.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from lowcomm.clock import Clock, SystemClock

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
SAME_CAUSE_S = 1.0
"""A Ctrl-C that comes sooner after the first signal is the same one, handed on by a parent."""


def leaving_signals() -> tuple[signal.Signals, ...]:
    """SIGINT, SIGTERM and SIGHUP; not SIGHUP where it was ignored at the start, as under nohup."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return tuple(numbers)


@contextmanager
def handling(
    handler: Callable[[int, FrameType | None], Any], numbers: Sequence[signal.Signals] | None = None
) -> Iterator[None]:
    """Let `handler` have signals meanwhile, by default `leaving_signals`; in the main thread only."""
    before: dict[signal.Signals, Any] = {}
    try:
        for number in leaving_signals() if numbers is None else numbers:
            before[number] = signal.signal(number, handler)
    except ValueError:
        pass  # not the main thread, e.g. islands in threads: whoever runs them handles signals
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class Asked:
    """What the signals that came so far mean.

    Attributes:
        to_leave: a signal has come.
        at_once: a person has pressed Ctrl-C again since.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.to_leave = self.at_once = False
        self._clock = clock or SystemClock()
        self._first_s = 0.0

    def take(self, number: int) -> None:
        """Count one signal."""
        now_s = self._clock.monotonic_s()
        if not self.to_leave:
            self.to_leave, self._first_s = True, now_s
        elif number == signal.SIGINT and now_s - self._first_s >= SAME_CAUSE_S:
            self.at_once = True


@contextmanager
def interrupted_by_any() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, so that nothing is left behind."""
    signals = Asked()

    def interrupt(number: int, _frame: FrameType | None) -> None:
        again = signals.to_leave
        signals.take(number)
        if not again:  # the next one would break off what cleans up
            raise KeyboardInterrupt

    with handling(interrupt, [number for number in leaving_signals() if number != signal.SIGINT]):
        yield


class Interrupts:
    """Handles the signals that ask to leave while it is used as a context manager.

    Attributes:
        can_wait: from now on there is something to save. Before, a signal raises KeyboardInterrupt.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.can_wait = False
        self._signals = Asked(clock)
        self._handling = handling(self._on_signal)

    @property
    def asked(self) -> bool:
        """A signal has come; whoever trains ends after this step, and saves."""
        return self._signals.to_leave

    def __enter__(self) -> Self:
        self._handling.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handling.__exit__(None, None, None)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again = self.asked
        self._signals.take(number)
        if self._signals.at_once:
            os._exit(128 + number)
        if again:
            return
        if not self.can_wait:
            raise KeyboardInterrupt  # nothing to save yet, and the wait for others may be long
        logger.warning("leaving after this step; Ctrl-C once more to leave at once")


@contextmanager
def signals_after_fork() -> Iterator[None]:
    """Have signals that come while a child is forked handled as soon as it runs.

    Python's own hooks around a fork swallow what a handler raises in them, so a Ctrl-C would be lost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers run in the main thread only
        return
    came: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        came.append(number)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    handled = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handled:
        signal.signal(number, keep)
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
        for signal_number in came:
            signal.raise_signal(signal_number)


def die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """What a child runs before it starts: it gets this signal when this process dies."""
    if not sys.platform.startswith("linux"):
        return None
    # looked up here, since between fork and exec nothing may be loaded
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def set_signal() -> None:
        prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return set_signal
