"""The seam of the metrics: records go to sinks, and no sink can stop the training."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Protocol, TextIO

from lowcomm.types import Json

Record = Mapping[str, Json]
"""One line of metrics.jsonl: `kind` (start, train, round, eval, end) and that kind's fields."""


class SinkNoticeError(Exception):
    """A sink has something to tell, once, and goes on: it keeps what it can't write now, or writes again."""


class Sink(Protocol):
    """Takes the records of one island, in order. It may raise whatever it likes."""

    def log(self, record: Record) -> None: ...

    def close(self) -> None:
        """Write out what is pending. Called once."""
        ...


class Fanout:
    """Gives each record to all sinks, and drops a sink at its first failure.

    The failure is reported once, with its reason: training goes on, and nobody finds out at the
    end of the run that half of it is missing.

    Args:
        sinks: (what it is called in messages, the sink).
        errors: where failures are reported; the standard error by default.
    """

    def __init__(self, sinks: Sequence[tuple[str, Sink]], errors: TextIO | None = None) -> None:
        self._sinks = list(sinks)
        self._errors = errors

    @property
    def names(self) -> tuple[str, ...]:
        """The sinks that still work."""
        return tuple(name for name, _ in self._sinks)

    def log(self, record: Record) -> None:
        for name, sink in tuple(self._sinks):
            try:
                sink.log(record)
            except SinkNoticeError as notice:
                self._say(f"{name}: {notice}")
            except Exception as error:  # the boundary to tracking code: training must outlive it
                self._drop(name, sink, error)

    def close(self) -> None:
        """Close all sinks; idempotent."""
        while self._sinks:
            name, sink = self._sinks.pop(0)
            try:
                sink.close()
            except Exception as error:  # the same boundary
                self._report(name, error)

    def _drop(self, name: str, sink: Sink, error: Exception) -> None:
        self._sinks = [entry for entry in self._sinks if entry[1] is not sink]
        self._report(name, error)
        try:
            sink.close()
        except Exception:  # it has failed and was reported; a second message would say the same
            pass

    def _report(self, name: str, error: Exception) -> None:
        what = str(error) or type(error).__name__
        self._say(f"{name} failed and is off from here on: {what}; training goes on")

    def _say(self, what: str) -> None:
        stream = self._errors if self._errors is not None else sys.stderr
        try:
            print(f"lowcomm: warning: {what}", file=stream, flush=True)
        except (OSError, ValueError):  # the standard error itself is closed or full
            pass
