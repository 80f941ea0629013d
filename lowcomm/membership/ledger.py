"""The ledger: committed outer updates of one fragment as a hash chain.

An entry names everything that is needed to recompute the state after it from the state before it:
who took part with which weight, the hash of the encoded mean (a blob that any peer can serve), how
that blob is cut, the digest of the resulting state, and the hash of the entry before. Its own hash
is the fragment's *head*; equal heads mean equal histories.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import blake3
import msgpack

from lowcomm.errors import CheckpointError, ProtocolError
from lowcomm.lines import LineFile
from lowcomm.membership.fields import MAX_COUNT, Fields, checked_int, checked_text
from lowcomm.membership.kept import Kept
from lowcomm.membership.update import Update
from lowcomm.types import Digest, Json, PeerId

MAX_PARTICIPANTS = 4_096
MAX_TOKENS = 1 << 40
"""One contribution claims no more, so that liars need millions of rounds to leave the range of totals."""
MAX_TOTAL_TOKENS = MAX_COUNT
"""A chain counts no further; an entry that would is voted for by nobody."""
KEPT_ENTRIES = 4_096
"""Entries kept for peers that missed rounds, where their updates are kept."""


def hash_bytes(*parts: bytes | bytearray | memoryview) -> Digest:
    """blake3 over the parts, one after the other."""
    hasher = blake3.blake3()
    for part in parts:
        hasher.update(part)
    return Digest(hasher.hexdigest())


def hash_value(value: Json) -> Digest:
    """blake3 over a plain value in its one msgpack form."""
    return hash_bytes(msgpack.packb(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One committed update of one fragment.

    Attributes:
        participants: (peer id, tokens) in roster order, which is the order of summation.
        total_tokens: credited to all islands in the fragment's chain up to here, this entry included.
        stops: the ends of the reducers' ranges, ascending; the last is the fragment's size.
        chunk_elements: how ranges were cut into separately encoded chunks.
        update_hash, update_bytes: of the encoded mean.
        state_digest: of anchor and momentum after the update.
        previous: hash of the entry before, or the genesis hash.
    """

    run_id: str
    fragment: int
    outer_step: int
    participants: tuple[tuple[PeerId, int], ...]
    total_tokens: int
    stops: tuple[int, ...]
    chunk_elements: int
    update_hash: Digest
    update_bytes: int
    state_digest: Digest
    previous: Digest

    def to_json(self) -> dict[str, Json]:
        """As it travels and as it is hashed."""
        return {
            "run_id": self.run_id,
            "fragment": self.fragment,
            "outer_step": self.outer_step,
            "participants": [[peer, tokens] for peer, tokens in self.participants],
            "total_tokens": self.total_tokens,
            "stops": list(self.stops),
            "chunk_elements": self.chunk_elements,
            "update_hash": self.update_hash,
            "update_bytes": self.update_bytes,
            "state_digest": self.state_digest,
            "previous": self.previous,
        }

    @property
    def hash(self) -> Digest:
        return hash_value(self.to_json())

    @property
    def tokens(self) -> int:
        """Credited to all participants."""
        return sum(tokens for _, tokens in self.participants)

    def tokens_of(self, peer: PeerId) -> int | None:
        """Tokens credited to `peer`, or None if it took no part."""
        return next((tokens for name, tokens in self.participants if name == peer), None)


def parse_entry(fields: Fields) -> Entry:
    """Check and build an entry from the network or a file.

    Raises:
        ProtocolError: a field is missing, of the wrong type or out of range.
    """
    participants = []
    for item in fields.items("participants", MAX_PARTICIPANTS):
        if not isinstance(item, list) or len(item) != 2:
            raise ProtocolError(f"{fields.kind}.participants: expected [peer, tokens] pairs")
        peer = checked_text("participants.peer", item[0], 128)
        participants.append((PeerId(peer), checked_int("participants.tokens", item[1], 0, MAX_TOKENS)))
    stops = fields.integers("stops", MAX_PARTICIPANTS)
    if not participants or not stops or list(stops) != sorted(stops):
        raise ProtocolError(f"{fields.kind}: expected participants and ascending stops")
    return Entry(
        run_id=fields.text("run_id"),
        fragment=fields.integer("fragment"),
        outer_step=fields.integer("outer_step", 1),
        participants=tuple(participants),
        total_tokens=fields.integer("total_tokens", 0, MAX_TOTAL_TOKENS),
        stops=stops,
        chunk_elements=fields.integer("chunk_elements", 1),
        update_hash=fields.digest("update_hash"),
        update_bytes=fields.integer("update_bytes"),
        state_digest=fields.digest("state_digest"),
        previous=fields.digest("previous"),
    )


def genesis_head(run_id: str, fragment: int, digest: Digest) -> Digest:
    """The head of a fragment's chain before its first entry, where the run begins with state `digest`."""
    return hash_value(["lowcomm genesis", run_id, fragment, digest])


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
        self._kept: OrderedDict[int, tuple[Entry, Kept]] = OrderedDict()

    def append(self, entry: Entry, update: Kept | None) -> None:
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
        if outer_step == self.outer_step:
            return [] if head == self.head else None
        self._forget()
        first = self._kept.get(outer_step + 1)
        if first is None or first[0].previous != head:
            return None
        return [entry for step, (entry, _) in self._kept.items() if step > outer_step]

    def update(self, update_hash: Digest) -> Kept | None:
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


def run_head(heads: Sequence[Digest]) -> Digest:
    """The run's head: the hash over the fragments' heads."""
    return hash_value(list(heads))


class LedgerFile:
    """`ledger.jsonl` of the run folder: one line per entry as it was applied, for audits.

    A line with `"snapshot": true` says that the state was taken from another peer there, so that
    the entries before it are not in this file. `lowcomm ledger verify` reads it
    (`lowcomm.outer.audit`).

    Args:
        path: a last line that a killed process left half written is cut off.
        keep_updates: encoded means per fragment that are kept beside it, in `updates/`.
    """

    def __init__(self, path: Path, keep_updates: int = 0) -> None:
        self._path, self._keep_updates = path, keep_updates
        self._lines = LineFile(path, torn="cut")

    def append(self, entry: Entry, update: Update) -> None:
        """Add a line, and the encoded mean where those are kept.

        Raises:
            OSError: the disk is full or the folder is gone; the line is kept and written with the next one.
        """
        self._write({**entry.to_json(), "hash": entry.hash})
        if self._keep_updates:
            file = update_path(self._path, entry.fragment, entry.outer_step)
            file.parent.mkdir(exist_ok=True)
            with file.open("wb") as target:
                target.writelines(update.parts)
            old = sorted(file.parent.glob(f"{entry.fragment}-*.update"))[: -self._keep_updates]
            for update_file in old:
                update_file.unlink()

    def note_snapshot(self, fragment: int, outer_step: int, head: Digest, state_digest: Digest) -> None:
        """Say that a fragment goes on from a state that another peer handed over.

        Raises:
            OSError: see `append`.
        """
        self._write(
            {
                "snapshot": True,
                "fragment": fragment,
                "outer_step": outer_step,
                "head": head,
                "state_digest": state_digest,
            }
        )

    def _write(self, line: dict[str, Json]) -> None:
        self._lines.append(json.dumps(line, separators=(",", ":")))


def update_path(ledger: Path, fragment: int, outer_step: int) -> Path:
    """Where the encoded mean of an outer step is kept beside its ledger file."""
    return ledger.parent / "updates" / f"{fragment}-{outer_step:09d}.update"
