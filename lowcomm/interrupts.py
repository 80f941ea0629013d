"""Ctrl-C and SIGTERM: the first one asks, the second one doesn't."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

logger = logging.getLogger(__name__)


class Interrupts:
    """Handles both signals while it is used as a context manager.

    Attributes:
        asked: a signal has come; whoever trains ends after this step, and saves.
        can_wait: from now on there is something to save. Before, a signal raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.asked = self.can_wait = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        except ValueError:
            pass  # not the main thread, e.g. islands in threads: whoever runs them handles signals
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = True
        if not self.can_wait:
            raise KeyboardInterrupt  # nothing to save yet, and the wait for others may be long
        logger.warning("leaving after this step; once more to leave at once")


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
