"""Writing down what was committed, as well as the disk lets one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Protocol

from lowcomm.in_order import InOrder
from lowcomm.ledger.chain import Certified
from lowcomm.ledger.update import Update
from lowcomm.types import Digest

logger = logging.getLogger(__name__)

MOST_WAITING = 4
"""Encoded means that wait for a slow disk, at most; of later ones there is the entry alone."""


class EntrySink(Protocol):
    """Where a node notes what it has committed; `LedgerFile` is one. Called from a worker thread.

    Either may raise OSError.
    """

    def append(self, certified: Certified, update: Update | None) -> None:
        """An entry was committed here; its encoded mean is None where the disk is too slow for it."""
        ...

    def note_snapshot(
        self, fragment: int, outer_step: int, head: Digest, state_digest: Digest, tip: Certified | None
    ) -> None:
        """A fragment goes on from a state that another peer handed over; `tip` is the entry that made it."""
        ...


class Recorder:
    """Passes on to a sink, or to none; a disk that is full is said once, and once that it is not.

    Lines that can't be written are kept by the sink.

    Args:
        pool: writes, in order.
    """

    def __init__(self, sink: EntrySink | None, pool: Executor) -> None:
        self._sink, self._waits = sink, False
        self._writing, self._given, self._kept = InOrder(pool), 0, 0

    def committed(self, certified: Certified, update: Update) -> None:
        """An entry was committed here."""
        if self._sink is None:
            return
        if self._given - self._kept >= MOST_WAITING:
            logger.warning(
                "outer step %d: the disk is too slow to keep its update", certified.entry.outer_step
            )
            self._writing.submit(partial(self._write, lambda sink: sink.append(certified, None)))
            return
        self._given += 1
        self._writing.submit(partial(self._keep, certified, update))

    def snapshot(
        self, fragment: int, outer_step: int, head: Digest, state_digest: Digest, tip: Certified | None
    ) -> None:
        """A fragment's state was taken from another peer."""
        note = partial(
            self._write, lambda sink: sink.note_snapshot(fragment, outer_step, head, state_digest, tip)
        )
        self._writing.submit(note)

    def written(self) -> Future[None]:
        """A future that is done when all that was noted so far is on its way to the disk."""
        return self._writing.done()

    def _keep(self, certified: Certified, update: Update) -> None:
        self._write(lambda sink: sink.append(certified, update))
        self._kept += 1

    def _write(self, write: Callable[[EntrySink], None]) -> None:
        if self._sink is None:
            return
        try:
            write(self._sink)
        except OSError as error:
            if not self._waits:
                logger.warning(
                    "ledger.jsonl can't be written (%s); its lines are kept in memory, the run goes on", error
                )
            self._waits = True
        else:
            if self._waits:
                logger.warning("ledger.jsonl is written again")
            self._waits = False
