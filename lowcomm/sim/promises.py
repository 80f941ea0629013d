"""What simulated islands without a run folder have promised."""

from __future__ import annotations

from lowcomm.ledger.entry import Entry
from lowcomm.ledger.update import Update
from lowcomm.rounds.values import Record


class MemoryPromises:
    """Promises of a simulated island, which outlive its crashes."""

    def __init__(self) -> None:
        self._newest: dict[int, Record] = {}
        self._updates: dict[int, tuple[str, Update]] = {}

    def save(self, record: Record, update: Update | None) -> None:
        """See `lowcomm.rounds.promises.Promises`."""
        before = self._newest.get(record.fragment)
        if before is not None and before.order > record.order:
            return
        self._newest[record.fragment] = record
        if update is not None and record.accepted is not None:
            self._updates[record.fragment] = record.accepted[1].update_hash, update

    def load(self, fragment: int) -> Record | None:
        """See `lowcomm.rounds.promises.Promises`."""
        return self._newest.get(fragment)

    def load_update(self, entry: Entry) -> Update | None:
        """See `lowcomm.rounds.promises.Promises`."""
        name, update = self._updates.get(entry.fragment, ("", None))
        return update if name == entry.update_hash else None

    def forget(self, fragment: int) -> None:
        """See `lowcomm.rounds.promises.Promises`."""
        self._newest.pop(fragment, None)
