"""The private folder of a running exchange, for its sockets; those of killed processes are swept."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lowcomm.clock import Clock
from lowcomm.errors import StorageError
from lowcomm.locks import Lock, TakenError

_PREFIX = "lowcomm-p2p-"
_NEW_S = 60.0
"""A folder younger than this may not be locked yet by who made it."""
_LONGEST_PARENT = 55
"""Bytes; the path of a socket below it, `/lowcomm-p2p-XXXXXXXX/p2pclient-XXXXXXXXXXX.sock`, may have 103."""
_OTHERS = ("/tmp", "/var/tmp", "/dev/shm")


class PrivateFolder:
    """A new folder in the system's temporary one, mode 0700, locked as long as it is in use.

    Where TMPDIR is too long for the path of a socket, as batch systems like to have it, can't be written, or
    is on a disk that holds no sockets (/mnt/c of WSL, CIFS), it is in XDG_RUNTIME_DIR, /tmp, /var/tmp or
    /dev/shm.

    Raises:
        StorageError: it can't be made.
    """

    def __init__(self, clock: Clock) -> None:
        failures = []
        for parent in _parents():
            _sweep(parent, clock.wall_s() - _NEW_S)
            try:
                self.path, self._lock = _make(parent)
                return
            except (OSError, TakenError) as error:
                failures.append(f"{parent} ({getattr(error, 'strerror', None) or error})")
        raise StorageError(
            "p2pd needs a folder for its sockets, and none can be made in "
            f"{', '.join(failures)}; set TMPDIR to a writable folder with a short path (at most "
            f"{_LONGEST_PARENT} bytes), or mount a tmpfs on /tmp"
        )

    @property
    def whole(self) -> bool:
        """Whether nobody has deleted it, as programs do that clean temporary folders."""
        return self.path.is_dir()

    def stay_young(self) -> None:
        """Have what is in it look used, to programs that delete what is old."""
        with contextlib.suppress(OSError):  # some of it has just been closed or deleted
            for item in (self.path, *self.path.iterdir()):
                os.utime(item)

    def remove(self) -> None:
        """Delete it with all it holds. Idempotent."""
        if self._lock.descriptor >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            self._lock.close()


def _parents() -> Iterator[Path]:
    """Where it may be, the best first; each once."""
    try:
        usual = tempfile.gettempdir()
    except OSError:  # of TMPDIR, /tmp and so on none can be written
        usual = ""
    places = [usual, os.environ.get("XDG_RUNTIME_DIR", ""), *_OTHERS]
    for place in dict.fromkeys(places):
        if place and len(os.fsencode(place)) <= _LONGEST_PARENT:
            yield Path(place)


def _make(parent: Path) -> tuple[Path, Lock]:
    """A new folder that can hold sockets, and the lock on it.

    Raises:
        OSError, TakenError: there can't be one here.
    """
    path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        with socket.socket(socket.AF_UNIX) as trial:
            trial.bind(str(path / "trial.sock"))
        (path / "trial.sock").unlink()
        return path, Lock(path)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def _sweep(parent: Path, before_s: float) -> None:
    """Delete the folders of processes that were killed; the kernel has released their locks."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            found = folder.lstat()
            if found.st_uid != os.getuid() or found.st_mtime > before_s or folder.is_symlink():
                continue
            lock = Lock(folder)
        except (OSError, TakenError):
            continue  # in use, gone by now, or none of our business
        if not lock.missing:
            shutil.rmtree(folder, ignore_errors=True)
        lock.close()
