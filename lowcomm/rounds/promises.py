"""What an acceptor has promised and voted for, kept over a crash.

An acceptor that forgets can be made to vote for something else (Paxos Made Simple, section 2.2). So a ballot
that it joins is written down before its data leaves, since others may accept an update with that data in it,
and its vote before that leaves (docs/design/0019-rounds.md).
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from threading import Lock
from typing import Protocol

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.fields import Fields
from lowcomm.ledger.entry import Entry
from lowcomm.ledger.update import Update
from lowcomm.rounds.values import Record, parse_record
from lowcomm.storage.files import sync_folder, write_atomically

logger = logging.getLogger(__name__)


class Promises(Protocol):
    """Where the newest record of each fragment is kept. Called from worker threads."""

    def save(self, record: Record, update: Update | None) -> None:
        """Keep a record, unless a later one is kept; returns when it is safe.

        Args:
            update: the accepted one, which is to be safe before the record that names it; None = is not kept.

        Raises:
            OSError: it could not be written, so nothing that depends on it may be sent.
        """
        ...

    def load(self, fragment: int) -> Record | None:
        """The newest record."""
        ...

    def load_update(self, entry: Entry) -> Update | None:
        """The update of an accepted entry; None where it is not here whole."""
        ...

    def forget(self, fragment: int) -> None:
        """Drop a record that binds nobody any more, as all have gone back to before it."""
        ...


class FilePromises:
    """Promises in `promises/` of the run folder; nothing in it goes back, whichever thread comes first.

    Raises:
        ProtocolError: by `load`, if a record is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "promises"
        self._lock = Lock()

    def save(self, record: Record, update: Update | None) -> None:
        """See `Promises`."""
        with self._lock:
            if not self._folder.exists():
                self._folder.mkdir()
                sync_folder(self._folder.parent)
            before = self.load(record.fragment)
            if before is not None and before.order > record.order:
                return
            entry = record.accepted[1] if record.accepted else None
            if update is not None and entry is not None and not self._is_whole(entry):
                write_atomically(self._update_path(entry), *update.parts)
            write_atomically(self._path(record.fragment), json.dumps(record.to_json()).encode())
            last = before.accepted[1] if before and before.accepted else None
            if last is not None and (entry is None or last.update_hash != entry.update_hash):
                self._update_path(last).unlink(missing_ok=True)

    def load(self, fragment: int) -> Record | None:
        """See `Promises`.

        Raises:
            ProtocolError: it can't be read, and what this island has promised is not known.
        """
        path = self._path(fragment)
        try:
            return parse_record(Fields("promise", json.loads(path.read_text(encoding="utf-8"))))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, ProtocolError) as error:
            raise ProtocolError(
                f"{path}: what this island has promised in its last round can't be read ({error}); without "
                "it the run could get two histories. Mend the disk; or remove the run folder, to join as a "
                "new island"
            ) from error

    def load_update(self, entry: Entry) -> Update | None:
        """See `Promises`."""
        try:
            update = Update([self._update_path(entry).read_bytes()])
        except OSError:
            return None
        return update if update.digest == entry.update_hash else None

    def forget(self, fragment: int) -> None:
        """See `Promises`."""
        with self._lock:
            self._path(fragment).unlink(missing_ok=True)
            sync_folder(self._folder)

    def _is_whole(self, entry: Entry) -> bool:
        return self.load_update(entry) is not None

    def _update_path(self, entry: Entry) -> Path:
        return self._folder / f"{entry.update_hash}.update"

    def _path(self, fragment: int) -> Path:
        return self._folder / f"{fragment}.json"
