"""What a peer has voted for, kept over a crash.

An acceptor that forgets its vote can be made to vote for something else (Paxos Made Simple, section
2.2), so with `partition = "majority"` a vote is written down before it is sent. Votes are enough: an
update commits with the votes of *all* participants of its ballot, so a ballot that a peer has joined
and not voted in can't have committed, and forgetting it harms nobody.

The vote is made durable (fsync); the update beside it is not, as it only has to outlive the process.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.fields import Fields
from lowcomm.ledger.entry import Entry, parse_entry
from lowcomm.ledger.update import Update
from lowcomm.rounds.roster import Ballot, parse_ballot
from lowcomm.storage.files import write_atomically

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Promise:
    """A vote for `entry` in `ballot`, with the update that the entry names."""

    ballot: Ballot
    entry: Entry
    update: Update


class Promises(Protocol):
    """Where the newest vote of each fragment is kept. Called from worker threads."""

    def save(self, promise: Promise) -> None:
        """Keep a vote in place of the one before; returns when it is safe.

        Raises:
            OSError: it could not be written, so the vote must not be sent.
        """
        ...

    def load(self, fragment: int) -> Promise | None:
        """The newest vote, if there is one and its update is whole."""
        ...


class FilePromises:
    """Promises in `promises/` of the run folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "promises"

    def save(self, promise: Promise) -> None:
        """See `Promises`."""
        self._folder.mkdir(exist_ok=True)
        path = self._path(promise.entry.fragment)
        update = self._folder / f"{promise.entry.update_hash}.update"
        if not update.exists():  # else it is voted for again, in a higher ballot
            with update.open("wb") as file:
                file.writelines(promise.update.parts)
        body = {"ballot": promise.ballot.to_json(), "entry": promise.entry.to_json()}
        before = self._read(path)
        write_atomically(path, json.dumps(body).encode())
        if before is not None and before[1].update_hash != promise.entry.update_hash:
            (self._folder / f"{before[1].update_hash}.update").unlink(missing_ok=True)

    def load(self, fragment: int) -> Promise | None:
        """See `Promises`."""
        found = self._read(self._path(fragment))
        if found is None:
            return None
        ballot, entry = found
        try:
            update = Update([(self._folder / f"{entry.update_hash}.update").read_bytes()])
        except OSError:
            update = Update([])
        if update.digest != entry.update_hash:
            logger.error(
                "fragment %d: the update that this island has voted for in outer step %d is not whole on "
                "disk; its vote is forgotten",
                fragment,
                entry.outer_step,
            )
            return None
        return Promise(ballot, entry, update)

    def _path(self, fragment: int) -> Path:
        return self._folder / f"{fragment}.json"

    def _read(self, path: Path) -> tuple[Ballot, Entry] | None:
        try:
            fields = Fields("promise", json.loads(path.read_text(encoding="utf-8")))
            return parse_ballot(fields), parse_entry(fields.inner("entry"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, ProtocolError) as error:
            logger.error("%s: a vote can't be read: %s", path, error)
            return None


class MemoryPromises:
    """Promises of a simulated island, which outlive its crashes."""

    def __init__(self) -> None:
        self._newest: dict[int, Promise] = {}

    def save(self, promise: Promise) -> None:
        """See `Promises`."""
        self._newest[promise.entry.fragment] = promise

    def load(self, fragment: int) -> Promise | None:
        """See `Promises`."""
        return self._newest.get(fragment)
