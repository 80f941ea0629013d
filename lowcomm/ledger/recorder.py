"""Writing down what was committed, as well as the disk lets one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from lowcomm.ledger.entry import Entry
from lowcomm.ledger.update import Update
from lowcomm.types import Digest

logger = logging.getLogger(__name__)


class EntrySink(Protocol):
    """Where a node notes what it has committed; `LedgerFile` is one. Either may raise OSError."""

    def append(self, entry: Entry, update: Update) -> None:
        """An entry was committed here."""
        ...

    def note_snapshot(self, fragment: int, outer_step: int, head: Digest, state_digest: Digest) -> None:
        """A fragment goes on from a state that another peer handed over."""
        ...


class Recorder:
    """Passes on to a sink, or to none; a disk that is full is said once, and once that it is not.

    Lines that can't be written are kept by the sink.
    """

    def __init__(self, sink: EntrySink | None) -> None:
        self._sink, self._waits = sink, False

    def committed(self, entry: Entry, update: Update) -> None:
        """An entry was committed here."""
        self._write(lambda sink: sink.append(entry, update))

    def snapshot(self, fragment: int, outer_step: int, head: Digest, state_digest: Digest) -> None:
        """A fragment's state was taken from another peer."""
        self._write(lambda sink: sink.note_snapshot(fragment, outer_step, head, state_digest))

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
