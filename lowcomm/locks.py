"""Locks on files and folders, held by one process and by no child of it, on whatever file system there is.

NFS makes a byte-range lock of flock(), which wants a descriptor that is open for writing (flock(2)). CIFS
says EACCES where others say EWOULDBLOCK. Some file systems know no locks at all: then nothing is protected,
and whoever asked for the lock has to say so.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

_TAKEN = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES})
_held: set[int] = set()
_watching_forks = False


class TakenError(Exception):
    """Another live process holds the lock."""


class Lock:
    """An exclusive lock on a file or folder that exists, until `close`; the kernel ends it with the process.

    A file is opened for writing where that is allowed, a folder for reading.

    Attributes:
        descriptor: of the open file.
        missing: why the file system gives no lock, in the system's words; empty where the lock is held.

    Raises:
        TakenError: another live process holds it.
        OSError: the file can't be opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDWR)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM, errno.EISDIR):
                raise
            self.descriptor = os.open(path, os.O_RDONLY)
        self.missing = ""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                os.close(self.descriptor)
                raise TakenError(str(path)) from error
            self.missing = error.strerror or str(error)
        _held.add(self.descriptor)
        _watch_forks()

    def close(self) -> None:
        """Give the lock up. Idempotent."""
        if self.descriptor in _held:  # else a forked child let go of it, and the number may be reused
            _held.discard(self.descriptor)
            os.close(self.descriptor)
        self.descriptor = -1


def _watch_forks() -> None:
    """A forked child, say a worker that loads data, must not hold the lock on after its parent was killed."""
    global _watching_forks
    if not _watching_forks:
        _watching_forks = True
        os.register_at_fork(after_in_child=_let_go)


def _let_go() -> None:
    for descriptor in _held:  # not unlocked: the open file, and so the lock, is the parent's, too
        os.close(descriptor)
    _held.clear()
