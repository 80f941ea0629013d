"""The redo log: committed entries and their updates, on disk, as a checkpoint may not have them.

An island that starts again from a checkpoint replays from it what was committed since, as a database does
after a crash (write-ahead logging; Mohan et al. 1992, ARIES, section 3). So no outer step is decided a second
time, also where all islands lose power at once.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from pathlib import Path
from threading import Lock

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.fields import Fields
from lowcomm.ledger.chain import Certified, parse_certified
from lowcomm.ledger.entry import Entry
from lowcomm.ledger.update import Update
from lowcomm.storage.files import sync_folder, write_atomically
from lowcomm.types import Digest

logger = logging.getLogger(__name__)

STATES = 2
"""Updates of a fragment are kept until they weigh so many times its state: with int8, of 16 outer steps."""
MOST_UNWRITTEN = 4
"""So many of a fragment wait in memory for a disk that takes nothing; the oldest go, and what follows them
can't be replayed."""


class RedoLog:
    """Two files for each entry, in `redo/<fragment>/` of a run folder.

    Args:
        capacity_bytes: of the updates of each fragment; the oldest make room.

    Attributes:
        folder: of all fragments.
    """

    def __init__(self, folder: Path, capacity_bytes: tuple[int, ...]) -> None:
        self.folder = folder / "redo"
        self._folders = [self.folder / str(fragment) for fragment in range(len(capacity_bytes))]
        self._capacity = capacity_bytes
        self._unwritten = [deque[tuple[Certified, Update]](maxlen=MOST_UNWRITTEN) for _ in capacity_bytes]
        self._written: list[dict[int, Digest]] = [{} for _ in capacity_bytes]
        self._lock = Lock()

    def note(self, certified: Certified, update: Update) -> None:
        """An entry was committed; `flush` writes it."""
        entry = certified.entry
        if self._written[entry.fragment].get(entry.outer_step) != entry.hash:
            self._unwritten[entry.fragment].append((certified, update))

    def flush(self) -> None:
        """Write what was noted; it is safe on return. Called from worker threads.

        Raises:
            OSError: it could not be written; what is left is written by the next call.
        """
        with self._lock:
            for unwritten in self._unwritten:
                while unwritten:
                    certified, update = unwritten[0]
                    self._write(certified, update)
                    if unwritten[0][0] is certified:  # else it had to make room meanwhile
                        unwritten.popleft()

    def entries(self, fragment: int) -> list[Certified]:
        """What is kept of a fragment, in order; what can't be read is left out with all that follows it."""
        found = []
        try:
            for step in self._steps(fragment):
                path = self._path(fragment, step, "json")
                if not path.exists():
                    break  # this process died between the two files, and nothing depends on them
                text = path.read_text(encoding="utf-8")
                found.append(parse_certified(Fields("redo", json.loads(text))))
        except (OSError, ValueError, ProtocolError) as error:
            logger.warning("%s: %s; what follows is taken from the others", self._folders[fragment], error)
        with self._lock:
            self._written[fragment] = {
                certified.entry.outer_step: certified.entry.hash for certified in found
            }
        return found

    def update(self, entry: Entry) -> Update | None:
        """The encoded mean of an entry; None where it is not here whole."""
        try:
            update = Update([self._path(entry.fragment, entry.outer_step, "update").read_bytes()])
        except OSError:
            return None
        return update if update.digest == entry.update_hash else None

    def _write(self, certified: Certified, update: Update) -> None:
        entry = certified.entry
        folder = self._folders[entry.fragment]
        if not folder.exists():
            folder.mkdir(parents=True)
            sync_folder(folder.parent)
            sync_folder(folder.parent.parent)
        write_atomically(self._path(entry.fragment, entry.outer_step, "update"), *update.parts)
        data = json.dumps(certified.to_json()).encode()
        write_atomically(self._path(entry.fragment, entry.outer_step, "json"), data)
        self._written[entry.fragment][entry.outer_step] = entry.hash
        self._make_room(entry.fragment)

    def _make_room(self, fragment: int) -> None:
        """The newest stays, whatever it weighs."""
        sizes = {step: self._path(fragment, step, "update").stat().st_size for step in self._steps(fragment)}
        for step in list(sizes)[:-1]:
            if sum(sizes.values()) <= self._capacity[fragment]:
                break
            self._path(fragment, step, "json").unlink(missing_ok=True)
            self._path(fragment, step, "update").unlink()
            del sizes[step]
            self._written[fragment].pop(step, None)

    def _steps(self, fragment: int) -> list[int]:
        return sorted(
            int(path.stem) for path in self._folders[fragment].glob("*.update") if path.stem.isdigit()
        )

    def _path(self, fragment: int, outer_step: int, kind: str) -> Path:
        return self._folders[fragment] / f"{outer_step}.{kind}"
