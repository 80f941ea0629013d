"""Importing hivemind where there is no shared memory: a read-only container, AWS Lambda.

Some of hivemind's classes make a `multiprocessing.Lock` as they are defined, a semaphore in /dev/shm. They
guard what several processes of one peer share. Here hivemind runs in one process only, so a lock between
threads does as well.
"""

from __future__ import annotations

import logging
import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def thread_locks_without_shm() -> Iterator[None]:
    """Within this, `multiprocessing.Lock` makes locks between threads, if this host can't make others."""
    try:
        multiprocessing.Lock()
    except (OSError, ImportError) as error:  # ImportError: a Python that was built without semaphores
        logger.info("no semaphores in /dev/shm (%s): hivemind gets locks between threads", error)
    else:
        yield
        return
    made = multiprocessing.Lock
    multiprocessing.Lock = threading.Lock  # type: ignore[assignment]
    try:
        yield
    finally:
        multiprocessing.Lock = made
