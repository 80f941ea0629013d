"""The ledger of one fragment as a hash chain: its head, and the newest entries with their updates."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from lowcomm.errors import CheckpointError, ProtocolError
from lowcomm.exchanges.fields import Fields
from lowcomm.ledger.certificate import Certificate, parse_certificate
from lowcomm.ledger.entry import Entry, genesis_head, parse_entry
from lowcomm.ledger.store import StoredUpdate
from lowcomm.types import Digest, Json

KEPT_ENTRIES = 4_096
"""Entries kept for peers that missed rounds, where their updates are kept."""


KEPT_HEADS = 512
"""Entries kept without their updates, to find where two histories part, and who was credited meanwhile."""


class Standing(NamedTuple):
    """How far a chain is. Of two chains the greater one is followed: committed tokens, then outer steps."""

    total_tokens: int
    outer_step: int


class Certified(NamedTuple):
    """An entry with its certificate; None for entries of versions before 0.2."""

    entry: Entry
    certificate: Certificate | None

    def to_json(self) -> dict[str, Json]:
        """As it travels, and as it is kept."""
        body = self.entry.to_json()
        if self.certificate is not None:
            body["certificate"] = self.certificate.to_json()
        return body


def parse_certified(fields: Fields) -> Certified:
    """Check the form of an entry and of its certificate.

    Raises:
        ProtocolError: a field is missing, of the wrong type or out of range.
    """
    proof = parse_certificate(fields.inner("certificate")) if fields.has("certificate") else None
    return Certified(parse_entry(fields), proof)


class Chain:
    """The chain of one fragment: its head, and the newest entries with their updates."""

    def __init__(self, run_id: str, fragment: int, genesis_digest: Digest) -> None:
        self.fragment = fragment
        self.outer_step = 0
        self.head = genesis_head(run_id, fragment, genesis_digest)
        self.last: Entry | None = None
        self.certificate: Certificate | None = None
        self._kept: OrderedDict[int, tuple[Certified, StoredUpdate]] = OrderedDict()
        self._heads: OrderedDict[int, tuple[Digest, Certified | None]] = OrderedDict({0: (self.head, None)})

    def append(self, certified: Certified, update: StoredUpdate | None) -> None:
        """Add the next entry with its encoded mean; None where that is not kept."""
        entry = certified.entry
        if entry.outer_step != self.outer_step + 1 or entry.previous != self.head:
            raise AssertionError(f"entry {entry.outer_step} does not follow {self.outer_step}")
        self.outer_step = entry.outer_step
        self.head = entry.hash
        self.last, self.certificate = certified
        self._heads[self.outer_step] = self.head, certified
        self._trim()
        if update is None:
            self._kept.clear()
            return
        self._kept[entry.outer_step] = (certified, update)
        self._forget()

    @property
    def tip(self) -> Certified | None:
        """The newest entry."""
        return Certified(self.last, self.certificate) if self.last else None

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

    def restart_at(
        self, outer_step: int, head: Digest, tip: Certified | None, path: Sequence[Certified] = ()
    ) -> list[Certified] | None:
        """Continue from a snapshot or a checkpoint, without the updates of what led to it.

        Args:
            path: the entries that lead there from an entry of this history; so who takes this state over in
                turn is told what led to it. Empty where they aren't known, or it is of this history.

        Returns:
            The entries of this history that are left with that; None where it isn't known which.
        """
        common = path[0].entry.outer_step - 1 if path else outer_step
        known = self.head_at(common) == (path[0].entry.previous if path else head)
        known = known and (not path or path[-1].entry.hash == head)
        left = [kept for step, (_, kept) in self._heads.items() if known and step > common]
        heads = OrderedDict[int, tuple[Digest, Certified | None]]()
        if known:
            heads.update((step, kept) for step, kept in self._heads.items() if step <= common)
            heads.update((one.entry.outer_step, (one.entry.hash, one)) for one in path)
        elif tip is not None:
            heads[outer_step - 1] = tip.entry.previous, None
        self.outer_step, self.head = outer_step, head
        self.last, self.certificate = tip or (None, None)
        self._heads = heads
        self._heads[outer_step] = head, tip
        self._trim()
        self._kept.clear()
        return [kept for kept in left if kept is not None] if known else None

    def remember(self, before: Sequence[Certified]) -> None:
        """Take in what others say has led to the oldest head that is kept; nothing where it has not."""
        oldest = next(iter(self._heads))
        if not before or before[-1].entry.hash != self._heads[oldest][0]:
            return
        first = before[0].entry
        heads = OrderedDict[int, tuple[Digest, Certified | None]](
            {first.outer_step - 1: (first.previous, None)}
        )
        heads.update((one.entry.outer_step, (one.entry.hash, one)) for one in before)
        heads.update((step, kept) for step, kept in self._heads.items() if step > oldest)
        self._heads = heads
        self._trim()

    def _trim(self) -> None:
        while len(self._heads) > KEPT_HEADS:
            self._heads.popitem(last=False)

    def after(self, outer_step: int, head: Digest) -> list[Certified] | None:
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
        return first is not None and first[0].entry.previous == head

    def head_at(self, outer_step: int) -> Digest | None:
        """The head after an outer step of this history; None where that isn't kept."""
        return self._heads.get(outer_step, (None,))[0]

    def entry_at(self, outer_step: int) -> Certified | None:
        """The entry of an outer step of this history; None where that isn't kept."""
        return self._heads.get(outer_step, (None, None))[1]

    def points(self) -> list[tuple[int, Digest]]:
        """Some outer steps of this history and the heads after them: the newest first, ever farther apart."""
        steps, back = [], 1
        while (step := self.outer_step - back) in self._heads:
            steps.append(step)
            back *= 2
        oldest = next(iter(self._heads))
        return [(step, self._heads[step][0]) for step in dict.fromkeys([self.outer_step, *steps, oldest])]

    def branch(self, points: Sequence[tuple[int, Digest]]) -> list[Certified] | None:
        """The entries after the newest of these points that is in this history; None where none is."""
        common = max((step for step, head in points if self.head_at(step) == head), default=None)
        if common is None:
            return None
        return [entry for step, (_, entry) in self._heads.items() if step > common and entry is not None]

    def until(self, outer_step: int) -> list[Certified]:
        """The entries up to an outer step, as far as they are kept, the newest first."""
        found = [
            entry for step, (_, entry) in self._heads.items() if step <= outer_step and entry is not None
        ]
        return found[::-1]

    def update(self, update_hash: Digest) -> StoredUpdate | None:
        """The encoded mean with this hash, if it is kept."""
        for kept, update in reversed(self._kept.values()):
            if kept.entry.update_hash == update_hash:
                return update
        return None

    def state_dict(self) -> dict[str, Json]:
        """Position and last entry; updates are not saved."""
        return {
            "outer_step": self.outer_step,
            "head": self.head,
            "last": self.tip.to_json() if self.tip else None,
        }

    def load_state_dict(self, state: dict[str, Json]) -> None:
        """Restore `state_dict`.

        Raises:
            CheckpointError: it isn't one.
        """
        try:
            fields = Fields("ledger", state)
            tip = parse_certified(fields.inner("last")) if fields.has("last") else None
            self.restart_at(fields.integer("outer_step"), fields.digest("head"), tip)
        except ProtocolError as error:
            raise CheckpointError(f"the checkpoint's ledger position is damaged: {error}") from error
