"""The standard streams of a command: there at the start, and harmless when whoever reads them has gone.

Daemons and job starters may close them, a terminal may be closed while a run goes on (EIO), the disk that a
log is redirected to may be full. A run must neither end by that nor write into a file of its own that has
got the number of a closed stream.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO

from lowcomm.errors import StorageError


class _Lasting(io.FileIO):
    """A standard stream that drops what can't be written, and keeps the first reason.

    Args:
        number: its descriptor.
        until_pipe_breaks: a reader that has left, as `head` does, ends the writer as everywhere.
    """

    def __init__(self, number: int, *, until_pipe_breaks: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self._until_pipe_breaks = until_pipe_breaks
        self.failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            written: int | None = super().write(data)
        except OSError as error:
            if self._until_pipe_breaks and isinstance(error, BrokenPipeError):
                raise
            self.failure = self.failure or error
            written = None
        return memoryview(data).nbytes if written is None else written


def open_standard_streams() -> None:
    """Open on /dev/null what of 0, 1 and 2 is closed, and have output and errors outlive their readers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            os.set_inheritable(null, True)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    # what a test or a notebook has put there is left alone
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = _text(_Lasting(1, until_pipe_breaks=True), sys.stdout)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Lasting(2, until_pipe_breaks=False), sys.stderr, line_buffering=True)


def flush_output() -> None:
    """Have all figures out.

    Raises:
        StorageError: a full disk, or a terminal that is gone, has not taken them.
        BrokenPipeError: their reader has left.
    """
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Lasting) and (failure := raw.failure) is not None:
        raise StorageError(
            f"the standard output could not be written: {failure.strerror}; expected a terminal, pipe or "
            "file that takes the figures"
        )


def give_up_output() -> None:
    """Let what is left go nowhere: Python would complain once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _text(raw: _Lasting, before: TextIO | None, *, line_buffering: bool = False) -> TextIO:
    if before is not None:
        before.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before is not None else "utf-8",
        errors="backslashreplace",
        line_buffering=line_buffering or raw.isatty(),
    )
