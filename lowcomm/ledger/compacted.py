"""What is kept of the entries that `lowcomm ledger compact` drops: the first line of the ledger file.

For each fragment there is a summary of each unbroken part of its chain, the newest last: where it begins and
ends, what it credits to whom, and its last entry with its certificate, from which follows who decides the
next one. `sum` is a hash chain over the dropped lines, so that whoever has kept them can show that they are
those. The island signs all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgpack

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.fields import MAX_NAME, Fields, checked_int, checked_text
from lowcomm.ledger.certificate import parse_signature
from lowcomm.ledger.chain import Certified, parse_certified
from lowcomm.ledger.entry import MAX_TOTAL_TOKENS
from lowcomm.ledger.mandate import MAX_SIGNATURE, NOBODY
from lowcomm.types import Digest, Json, PeerId

VERSION = 1
MAX_PARTS = 1 << 20


@dataclass(frozen=True, slots=True)
class Credit:
    """What entries credit to one peer.

    Attributes:
        tokens: in all.
        entries: in how many it took part.
        outer_step: of the newest of them.
        until: the tokens up to which, on the peer's own count, they credit its data.
    """

    tokens: int
    entries: int
    outer_step: int
    until: int


def credits_of(entries: Iterable[Certified], before: Mapping[PeerId, Credit]) -> dict[PeerId, Credit]:
    """What entries that follow others credit to whom, together with those."""
    found = dict(before)
    for entry, _ in entries:
        for peer, tokens in entry.participants:
            known, named = found.get(peer, Credit(0, 0, 0, 0)), entry.contribution_of(peer)
            until = named.start + named.tokens if named else known.until
            found[peer] = Credit(known.tokens + tokens, known.entries + 1, entry.outer_step, until)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An unbroken part of a fragment's chain.

    Attributes:
        start, first: the outer step and the head that it follows.
        outer_step, head: at its end.
        entries: how many it has; where they are none a state was taken there.
        last: the entry at its end, where it is known.
    """

    fragment: int
    start: int
    first: Digest
    outer_step: int
    head: Digest
    entries: int
    credits: Mapping[PeerId, Credit]
    last: Certified | None

    def extended(self, entries: Sequence[Certified]) -> Part:
        """With entries that follow it."""
        if not entries:
            return self
        last = entries[-1]
        return replace(
            self,
            outer_step=last.entry.outer_step,
            head=last.entry.hash,
            entries=self.entries + len(entries),
            credits=credits_of(entries, self.credits),
            last=last,
        )

    def to_json(self) -> dict[str, Json]:
        credited: dict[str, Json] = {
            peer: [credit.tokens, credit.entries, credit.outer_step, credit.until]
            for peer, credit in sorted(self.credits.items())
        }
        return {
            "fragment": self.fragment,
            "start": self.start,
            "first": self.first,
            "outer_step": self.outer_step,
            "head": self.head,
            "entries": self.entries,
            "credits": credited,
            "last": self.last.to_json() if self.last else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Compacted:
    """The first line of a compacted ledger file.

    Attributes:
        lines, sum: how many lines were dropped, and the hash over them.
        parts: of each fragment, those of one fragment in order.
        snapshots, rewound: states taken from others, and entries that restarts left behind, among them.
        signer: the island.
    """

    run_id: str
    lines: int
    sum: Digest
    parts: tuple[Part, ...]
    snapshots: int
    rewound: int
    signer: PeerId = NOBODY
    signature: bytes = b""

    @property
    def content(self) -> bytes:
        """What the island signs."""
        packed: bytes = msgpack.packb(["lowcomm compacted ledger", self._body()])
        return packed

    @property
    def entries(self) -> int:
        """How many it stands for."""
        return sum(part.entries for part in self.parts)

    def newest(self, fragment: int) -> Part | None:
        """The newest part of a fragment."""
        return next((part for part in reversed(self.parts) if part.fragment == fragment), None)

    def _body(self) -> dict[str, Json]:
        return {
            "version": VERSION,
            "run_id": self.run_id,
            "lines": self.lines,
            "sum": self.sum,
            "parts": [part.to_json() for part in self.parts],
            "snapshots": self.snapshots,
            "rewound": self.rewound,
        }

    def to_json(self) -> dict[str, Json]:
        """As it stands in the file."""
        signed: dict[str, Json] = {"signer": str(self.signer), "signature": self.signature.hex()}
        return {"compacted": {**self._body(), **signed}}


def parse_compacted(fields: Fields) -> Compacted:
    """Check the form of a compacted ledger's first line.

    Raises:
        ProtocolError: a field is missing, of the wrong type or out of range, or contradicts another.
    """
    if (version := fields.integer("version")) != VERSION:
        raise ProtocolError(f"{fields.kind}.version: expected {VERSION}, got {version}; use a newer lowcomm")
    return Compacted(
        run_id=fields.text("run_id"),
        lines=fields.integer("lines"),
        sum=fields.digest("sum"),
        parts=tuple(_parse_part(Fields("part", item)) for item in fields.items("parts", MAX_PARTS)),
        snapshots=fields.integer("snapshots"),
        rewound=fields.integer("rewound"),
        signer=PeerId(fields.text("signer", MAX_NAME)),
        signature=parse_signature(fields.text("signature", MAX_SIGNATURE)),
    )


def _parse_part(fields: Fields) -> Part:
    credited: dict[PeerId, Credit] = {}
    for name, item in fields.mapping("credits").items():
        if not isinstance(item, list) or len(item) != 4:
            raise ProtocolError("part.credits: expected [tokens, entries, outer step, until]")
        numbers = [checked_int("part.credits", number, 0, MAX_TOTAL_TOKENS) for number in item]
        credited[PeerId(checked_text("part.credits", name, MAX_NAME))] = Credit(*numbers)
    part = Part(
        fragment=fields.integer("fragment", 0, MAX_PARTS),
        start=fields.integer("start"),
        first=fields.digest("first"),
        outer_step=fields.integer("outer_step"),
        head=fields.digest("head"),
        entries=fields.integer("entries"),
        credits=credited,
        last=parse_certified(fields.inner("last")) if fields.has("last") else None,
    )
    last = part.last.entry if part.last else None
    if part.outer_step != part.start + part.entries or (
        last and (last.fragment, last.outer_step, last.hash) != (part.fragment, part.outer_step, part.head)
    ):
        raise ProtocolError("part: expected its last entry at its end, and as many entries as outer steps")
    return part
