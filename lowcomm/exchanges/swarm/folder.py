"""The private folder of a running exchange, for its sockets; those of killed processes are swept."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from lowcomm.clock import Clock
from lowcomm.errors import StorageError

_PREFIX = "lowcomm-p2p-"
_NEW_S = 60.0
"""A folder younger than this may not be locked yet by who made it."""
_LONGEST_PARENT = 55
"""Bytes; the path of a socket below it, `/lowcomm-p2p-XXXXXXXX/p2pclient-XXXXXXXXXXX.sock`, may have 103."""
_SHORT_PARENT = Path("/tmp")


class PrivateFolder:
    """A new folder in the system's temporary one, mode 0700, locked as long as it is in use.

    Where TMPDIR is too long for the path of a socket, as batch systems like to have it, it is in /tmp.

    Raises:
        StorageError: it can't be made.
    """

    def __init__(self, clock: Clock) -> None:
        parent = Path(tempfile.gettempdir())
        if len(os.fsencode(parent)) > _LONGEST_PARENT:
            parent = _SHORT_PARENT
        _sweep(parent, clock.wall_s() - _NEW_S)
        try:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self._lock = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as error:
            raise StorageError(f"no private folder can be made in {parent}: {error}; set TMPDIR") from error

    def remove(self) -> None:
        """Delete it with all it holds. Idempotent."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _sweep(parent: Path, before_s: float) -> None:
    """Delete the folders of processes that were killed; the kernel has released their locks."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            if folder.stat().st_uid != os.getuid() or folder.stat().st_mtime > before_s:
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # gone by now, or none of our business
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pass  # in use
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
