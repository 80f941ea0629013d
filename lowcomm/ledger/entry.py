"""An entry of the ledger: one committed outer update of one fragment, and its hash.

An entry names everything that is needed to recompute the state after it from the state before it:
who took part with which weight, the hash of the encoded mean (a blob that any peer can serve), how
that blob is cut, the digest of the resulting state, and the hash of the entry before. Its own hash
is the fragment's *head*; equal heads mean equal histories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import blake3
import msgpack

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.fields import MAX_COUNT, Fields, checked_int, checked_text
from lowcomm.ledger.credits import Credits, parse_credits
from lowcomm.spans import Spans
from lowcomm.types import Digest, Json, PeerId

MAX_PARTICIPANTS = 4_096
MAX_TOKENS = 1 << 40
"""One contribution claims no more, so that liars need millions of rounds to leave the range of totals."""
MAX_TOTAL_TOKENS = MAX_COUNT
"""A chain counts no further; an entry that would is voted for by nobody."""


def hash_bytes(*parts: bytes | bytearray | memoryview) -> Digest:
    """blake3 over the parts, one after the other."""
    hasher = blake3.blake3()
    for part in parts:
        hasher.update(part)
    return Digest(hasher.hexdigest())


def hash_value(value: Json) -> Digest:
    """blake3 over a plain value in its one msgpack form."""
    return hash_bytes(msgpack.packb(value))


SUM_LENGTH = 32
"""Hex digits of a contribution's hash."""


@dataclass(frozen=True, slots=True, order=True)
class ContributionId:
    """Which contribution of a peer to a fragment an entry is made of.

    Attributes:
        start: tokens that the peer had trained on, and been credited, before those of this contribution.
        tokens: of this contribution.
        sum: blake3 over its fp32 values, the first 32 hex digits.
    """

    start: int
    tokens: int
    sum: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One committed update of one fragment.

    Attributes:
        participants: (peer id, tokens) in roster order, which is the order of summation.
        contributions: (start, sum) of each participant's contribution, see `ContributionId`; empty in entries
            of versions before 0.2.
        total_tokens: credited to all islands in the fragment's chain up to here, this entry included.
        stops: the ends of the reducers' ranges, ascending; the last is the fragment's size.
        chunk_elements: how ranges were cut into separately encoded chunks.
        update_hash, update_bytes: of the encoded mean.
        state_digest: of anchor and slots after the update.
        previous: hash of the entry before, or the genesis hash.
        samples: which ones the anchor has seen; None where nobody says so, and in all fragments but the
            first.
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
    contributions: tuple[tuple[int, str], ...] = ()
    samples: Credits | None = None

    def to_json(self) -> dict[str, Json]:
        """As it travels and as it is hashed."""
        body: dict[str, Json] = {
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
        if self.contributions:
            body["contributions"] = [list(named) for named in self.contributions]
        if self.samples is not None:
            body["samples"] = self.samples.to_json()
        return body

    @cached_property
    def hash(self) -> Digest:
        return hash_value(self.to_json())

    @property
    def tokens(self) -> int:
        """Credited to all participants."""
        return sum(tokens for _, tokens in self.participants)

    def tokens_of(self, peer: PeerId) -> int | None:
        """Tokens credited to `peer`, or None if it took no part."""
        return next((tokens for name, tokens in self.participants if name == peer), None)

    def contribution_of(self, peer: PeerId) -> ContributionId | None:
        """Which contribution of `peer` is in it; None if it took no part, or the entry doesn't say."""
        for (name, tokens), (start, digest) in zip(self.participants, self.contributions, strict=False):
            if name == peer:
                return ContributionId(start, tokens, digest)
        return None

    def samples_of(self, peer: PeerId) -> Spans:
        """Which ones it credits to `peer`."""
        trained = self.samples.trained if self.samples else ()
        return next(
            (spans for (name, _), spans in zip(self.participants, trained, strict=False) if name == peer), ()
        )


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
    contributions = _parse_contributions(fields, len(participants))
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
        contributions=contributions,
        samples=parse_credits(fields.inner("samples"), len(participants)) if fields.has("samples") else None,
    )


def _parse_contributions(fields: Fields, count: int) -> tuple[tuple[int, str], ...]:
    if not fields.has("contributions"):
        return ()
    found = []
    for item in fields.items("contributions", MAX_PARTICIPANTS):
        if not isinstance(item, list) or len(item) != 2:
            raise ProtocolError(f"{fields.kind}.contributions: expected [start, sum] pairs")
        found.append((checked_int("contributions.start", item[0], 0, MAX_TOTAL_TOKENS), parse_sum(item[1])))
    if len(found) != count:
        raise ProtocolError(f"{fields.kind}.contributions: expected one for each of {count} participants")
    return tuple(found)


def parse_sum(value: Json) -> str:
    """Check the hash of a contribution.

    Raises:
        ProtocolError: it is none.
    """
    text = checked_text("contribution.sum", value, SUM_LENGTH)
    if len(text) != SUM_LENGTH or not set(text) <= set("0123456789abcdef"):
        raise ProtocolError(f"contribution.sum: expected {SUM_LENGTH} hex digits, got {text!r}")
    return text


def genesis_head(run_id: str, fragment: int, digest: Digest) -> Digest:
    """The head of a fragment's chain before its first entry, where the run begins with state `digest`."""
    return hash_value(["lowcomm genesis", run_id, fragment, digest])


def run_head(heads: Sequence[Digest]) -> Digest:
    """The run's head: the hash over the fragments' heads."""
    return hash_value(list(heads))
