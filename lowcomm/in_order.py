"""Work for a pool of threads that is done in the order in which it was given, one thing at a time."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future

logger = logging.getLogger(__name__)


class InOrder:
    """Files that are written behind the back of whoever can't wait for a disk. For any thread."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], None]] = deque()

    def submit(self, work: Callable[[], None]) -> None:
        """Do it after all that was given before; what it raises is logged."""
        with self._lock:
            self._waiting.append(work)
            idle = len(self._waiting) == 1
        if idle:
            self._pool.submit(self._next)

    def done(self) -> Future[None]:
        """A future that is done when all that was given so far is."""
        future: Future[None] = Future()
        self.submit(lambda: future.set_result(None))
        return future

    def _next(self) -> None:
        try:
            self._waiting[0]()
        except Exception:
            logger.exception("what was to be done in the background broke")
        with self._lock:
            self._waiting.popleft()
            more = bool(self._waiting)
        if more:
            self._pool.submit(self._next)
