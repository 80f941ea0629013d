"""Files that lines are appended to, which outlive a full disk and a kill in mid-line."""

from __future__ import annotations

import collections
import errno
import os
from pathlib import Path
from typing import Literal

KEPT_LINES = 10_000
"""What can't be written is kept in memory up to so many lines; older ones are lost then."""


class LineFile:
    """Appends lines; those that the disk refuses are written, in order, before the next one it takes.

    Args:
        path: the file; its folder must exist.
        torn: what happens to a last line that a killed process left half written: it is cut off, or
            closed with a newline, so that readers that follow the file keep their place.

    Attributes:
        waiting: lines that are not on their way to the disk yet.
        lost: lines that were dropped, since too many were waiting.
    """

    def __init__(self, path: Path, *, torn: Literal["cut", "close"]) -> None:
        self.path, self._torn = path, torn
        self.lost, self._looked = 0, False
        self._waiting: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def append(self, line: str) -> None:
        """Add a line, without its newline.

        Raises:
            OSError: it could not be written; it is kept, and tried again with the next one.
        """
        self.lost += len(self._waiting) == KEPT_LINES
        self._waiting.append(line + "\n")
        self.flush()

    def flush(self) -> None:
        """Write what is waiting.

        Raises:
            OSError: it could not be written, and waits on.
        """
        if not self._waiting:
            return
        data = "".join(self._waiting).encode()
        with self.path.open("ab+", buffering=0) as file:
            start = file.seek(0, os.SEEK_END)
            if start and not self._looked and os.pread(file.fileno(), 1, start - 1) != b"\n":
                if self._torn == "close":
                    data = b"\n" + data
                else:
                    start = self.path.read_bytes().rfind(b"\n") + 1
                    file.truncate(start)
            written = file.write(data)
            if written != len(data):  # the disk has filled up in the middle of it
                file.truncate(start)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._looked = True
        self._waiting.clear()
