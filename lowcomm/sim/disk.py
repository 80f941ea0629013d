"""The disk of simulated islands: what outlives a power cut, and work that a slow one keeps waiting."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class Disk:
    """Remembers which files and names were synced; the same for all folders of a simulation.

    A file that was replaced by renaming one over it, without a sync of its folder, counts as replaced: file
    systems in use keep that order.
    """

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        self._names: dict[int, frozenset[str]] = {}

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Inside it `os.fsync` notes, and spares the real disk."""
        synced = os.fsync
        os.fsync = self._note  # type: ignore[assignment]
        try:
            yield
        finally:
            os.fsync = synced

    def _note(self, handle: int) -> None:
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            self._names[found.st_ino] = frozenset(os.listdir(handle))
        else:
            self._sizes[found.st_ino] = found.st_size

    def cut_power(self, folder: Path) -> None:
        """Whatever was not synced is gone: names from their folders, and the ends of files."""
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_dir():
                continue
            found = path.stat()
            names = self._names.get(path.parent.stat().st_ino, frozenset())
            if path.name not in names and found.st_ino not in self._sizes:
                path.unlink()
            elif found.st_size > self._sizes.get(found.st_ino, 0):
                os.truncate(path, self._sizes.get(found.st_ino, 0))


class SimExecutor(Executor):
    """Does the work at once, or, on a slow disk, `delay_s` virtual seconds after it was submitted.

    Attributes:
        delay_s: of what is submitted from now on; 0 = at once.
    """

    def __init__(self) -> None:
        self.delay_s = 0.0
        self._over = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run `fn` now, or later."""
        if self._over:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[T] = Future()

        def work() -> None:
            if self._over or not future.set_running_or_notify_cancel():
                return  # nobody waits for it any more, or the island has died with it undone
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:  # handed on, as every executor does
                future.set_exception(error)

        if self.delay_s > 0.0:
            asyncio.get_running_loop().call_later(self.delay_s, work)
        else:
            work()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse work from now on, and leave undone what is waiting."""
        self._over = True
