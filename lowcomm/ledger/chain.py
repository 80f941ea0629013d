"""The ledger of one fragment as a hash chain: its head, and the newest entries with their updates."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from lowcomm.errors import CheckpointError, ProtocolError
from lowcomm.exchanges.fields import Fields
from lowcomm.ledger.entry import Entry, genesis_head, parse_entry
from lowcomm.ledger.store import StoredUpdate
from lowcomm.types import Digest, Json

KEPT_ENTRIES = 4_096
"""Entries kept for peers that missed rounds, where their updates are kept."""


class Standing(NamedTuple):
    """How far a chain is. Of two chains the greater one is followed: committed tokens, then outer steps."""

    total_tokens: int
    outer_step: int


class Chain:
    """The chain of one fragment: its head, and the newest entries with their updates."""

    def __init__(self, run_id: str, fragment: int, genesis_digest: Digest) -> None:
        self.fragment = fragment
        self.outer_step = 0
        self.head = genesis_head(run_id, fragment, genesis_digest)
        self.last: Entry | None = None
        self._kept: OrderedDict[int, tuple[Entry, StoredUpdate]] = OrderedDict()

    def append(self, entry: Entry, update: StoredUpdate | None) -> None:
        """Add the next entry with its encoded mean; None where that is not kept."""
        if entry.outer_step != self.outer_step + 1 or entry.previous != self.head:
            raise AssertionError(f"entry {entry.outer_step} does not follow {self.outer_step}")
        self.outer_step = entry.outer_step
        self.head = entry.hash
        self.last = entry
        if update is None:
            self._kept.clear()
            return
        self._kept[entry.outer_step] = (entry, update)
        self._forget()

    @property
    def total_tokens(self) -> int:
        """Credited to all islands so far."""
        return self.last.total_tokens if self.last else 0

    @property
    def standing(self) -> Standing:
        return Standing(self.total_tokens, self.outer_step)

    def _forget(self) -> None:
        """Drop the oldest entries, those whose updates had to make room."""
        while self._kept:
            _, oldest = next(iter(self._kept.values()))
            if oldest.alive and len(self._kept) <= KEPT_ENTRIES:
                break
            self._kept.popitem(last=False)

    def restart_at(self, outer_step: int, head: Digest, last: Entry | None) -> None:
        """Continue from a snapshot or a checkpoint; older entries are not kept."""
        self.outer_step, self.head, self.last = outer_step, head, last
        self._kept.clear()

    def after(self, outer_step: int, head: Digest) -> list[Entry] | None:
        """The entries that follow `head` at `outer_step`; None if they aren't kept or it forked off."""
        if not self.follows(outer_step, head):
            return None
        return [entry for step, (entry, _) in self._kept.items() if step > outer_step]

    def follows(self, outer_step: int, head: Digest) -> bool:
        """Whether all entries that follow `head` at `outer_step` are kept."""
        if outer_step == self.outer_step:
            return head == self.head
        self._forget()
        first = self._kept.get(outer_step + 1)
        return first is not None and first[0].previous == head

    def update(self, update_hash: Digest) -> StoredUpdate | None:
        """The encoded mean with this hash, if it is kept."""
        for entry, update in reversed(self._kept.values()):
            if entry.update_hash == update_hash:
                return update
        return None

    def state_dict(self) -> dict[str, Json]:
        """Position and last entry; updates are not saved."""
        return {
            "outer_step": self.outer_step,
            "head": self.head,
            "last": self.last.to_json() if self.last else None,
        }

    def load_state_dict(self, state: dict[str, Json]) -> None:
        """Restore `state_dict`.

        Raises:
            CheckpointError: it isn't one.
        """
        try:
            fields = Fields("ledger", state)
            last = parse_entry(fields.inner("last")) if fields.has("last") else None
            self.restart_at(fields.integer("outer_step"), fields.digest("head"), last)
        except ProtocolError as error:
            raise CheckpointError(f"the checkpoint's ledger position is damaged: {error}") from error
