"""Encoded updates that are kept for peers that missed rounds: on disk, in one file used as a ring.

The file has no name: it stands in the run folder, or where temporary files go, and ends with the
process. An update is in memory only until it has been written. Where room is needed the oldest go;
more than the outer state weighs is never kept, as a snapshot is cheaper than that to whoever lacks it.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections import deque
from concurrent.futures import Executor
from pathlib import Path
from typing import IO

from lowcomm.ledger.update import Update

logger = logging.getLogger(__name__)


class StoredUpdate:
    """One update in the ring; may be read from any thread.

    Attributes:
        alive: its room has not been given to another one.
    """

    paced = False

    def __init__(self, ring: UpdateStore, update: Update, start: int) -> None:
        self._ring, self.unwritten, self._start = ring, update, start
        self.alive = True
        self.size_bytes = update.size_bytes
        self.manifest, self.digest = update.manifest, update.digest

    unwritten: Update | None
    """What is still in memory."""

    @property
    def room(self) -> tuple[int, int]:
        """(start, stop) in the file."""
        return self._start, self._start + self.size_bytes

    def read(self, offset: int, length: int) -> bytes | None:
        """`length` bytes from `offset` on, fewer at the end; None where it is no longer kept."""
        unwritten = self.unwritten
        if unwritten is not None:
            return unwritten.read(offset, length)
        length = max(0, min(length, self.size_bytes - offset))
        data = self._ring.read(self._start + offset, length)
        return data if self.alive else None  # looked at after reading: its room may have been given away


class UpdateStore:
    """The updates of all fragments of one peer.

    Args:
        capacity_bytes: of the ring.
        folder: where the file stands; None = where temporary files go.
        pool: writes; None = whoever calls `put`.
    """

    def __init__(self, capacity_bytes: int, folder: Path | None = None, pool: Executor | None = None) -> None:
        self._capacity, self._folder, self._pool = capacity_bytes, folder, pool
        self._file: IO[bytes] | None = None
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._position = 0
        self._order: deque[StoredUpdate] = deque()
        self._broken = False

    @property
    def memory_bytes(self) -> int:
        """Of updates that are not written yet."""
        return sum(kept.size_bytes for kept in list(self._order) if kept.unwritten is not None)

    def put(self, update: Update) -> StoredUpdate | None:
        """Keep an update; None where that can't be. Older ones may have to go."""
        size = update.size_bytes
        if size > self._capacity or self._broken:
            return None
        if self._position + size > self._capacity:
            self._position = 0
        kept = StoredUpdate(self, update, self._position)
        start, stop = kept.room
        while any(old.room[0] < stop and start < old.room[1] for old in self._order):
            self._order.popleft().alive = False
        self._position = stop
        self._order.append(kept)
        if self._pool is None:
            self._write(kept)
        else:
            self._pool.submit(self._write, kept)
        return kept

    def _write(self, kept: StoredUpdate) -> None:
        with self._lock:
            update = kept.unwritten
            if not kept.alive or update is None:
                kept.unwritten = None
                return
            try:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed by `close`
                position = kept.room[0]
                for part in update.parts:
                    position += _write_all(self._file.fileno(), part, position)
            except OSError as error:
                if not self._broken:
                    logger.warning(
                        "updates can't be kept (%s): who misses rounds takes a snapshot from this island",
                        error.strerror or error,
                    )
                self._broken = True
                kept.alive = False
            kept.unwritten = None

    def read(self, position: int, length: int) -> bytes:
        """Bytes of the file."""
        with self._reading:  # a number of a closed file may be that of another one
            file = self._file
            return os.pread(file.fileno(), length, position) if file is not None else b""

    def close(self) -> None:
        """Give the file up."""
        with self._lock, self._reading:
            for kept in self._order:
                kept.alive, kept.unwritten = False, None
            self._order.clear()
            self._broken = True
            if self._file is not None:
                self._file.close()
                self._file = None


def _write_all(handle: int, data: memoryview, position: int) -> int:
    written = 0
    while written < len(data):
        written += os.pwrite(handle, data[written:], position + written)
    return written
