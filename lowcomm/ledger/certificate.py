"""Ballots, and the certificate of an entry: the signed votes that made it the one of its outer step.

A vote is a signature on the outer step, the ballot, who is left out as absent, and the entry's hash. Equal
votes of a quorum in one ballot choose an entry for good (docs/design/0019-rounds.md); with them beside it
nobody has to take anybody's word for a history.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgpack

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.fields import MAX_NAME, Fields, checked_int, checked_text
from lowcomm.ledger.entry import MAX_PARTICIPANTS, Entry
from lowcomm.ledger.mandate import MAX_SIGNATURE, Authority, Mandate, Verify, parse_mandate
from lowcomm.types import Digest, Json, PeerId

MAX_ATTEMPTS = 1 << 62


class Ballot(NamedTuple):
    """One attempt at one outer step; ordered, and led by one peer only."""

    attempt: int
    leader: str

    def to_json(self) -> list[Json]:
        return [self.attempt, self.leader]


NO_BALLOT = Ballot(0, "")


def parse_ballot(fields: Fields, name: str = "ballot") -> Ballot:
    """Read a ballot from a message."""
    items = fields.items(name, 2)
    if len(items) != 2:
        raise ProtocolError(f"{fields.kind}.{name}: expected [attempt, leader]")
    attempt = checked_int(f"{fields.kind}.{name}", items[0], 0, MAX_ATTEMPTS)
    return Ballot(attempt, checked_text(f"{fields.kind}.{name}", items[1], 128))


def vote_bytes(
    run_id: str,
    fragment: int,
    outer_step: int,
    ballot: Ballot,
    absent: Sequence[PeerId],
    entry: Digest,
    mandate: Digest | None = None,
) -> bytes:
    """What a voter signs: also by which mandate it goes, if by any."""
    words = ["lowcomm vote", run_id, fragment, outer_step, ballot.to_json(), list(absent), entry]
    packed: bytes = msgpack.packb([*words, mandate] if mandate else words)
    return packed


def goodbye_bytes(run_id: str, peer: PeerId, outer_steps: Sequence[int]) -> bytes:
    """What a peer signs that leaves in order, at these outer steps of its fragments: it votes no more."""
    packed: bytes = msgpack.packb(["lowcomm goodbye", run_id, peer, list(outer_steps)])
    return packed


@dataclass(frozen=True, slots=True)
class Goodbye:
    """A peer has left in order."""

    peer: PeerId
    outer_steps: tuple[int, ...]
    signature: bytes

    def to_json(self) -> dict[str, Json]:
        return {
            "peer": self.peer,
            "outer_steps": list(self.outer_steps),
            "signature": self.signature.hex(),
        }


@dataclass(frozen=True, slots=True)
class Certificate:
    """Why an entry is the one of its outer step.

    Attributes:
        ballot: in which it was voted for.
        absent: members of the electorate that are left out, ascending.
        votes: (peer, signature), ascending by peer.
        goodbyes: of absent members that have left in order.
        mandate: who may decide in place of the last participants, where an operator had to say so.
    """

    ballot: Ballot
    absent: tuple[PeerId, ...]
    votes: tuple[tuple[PeerId, bytes], ...]
    goodbyes: tuple[Goodbye, ...] = ()
    mandate: Mandate | None = None

    @property
    def voters(self) -> tuple[PeerId, ...]:
        return tuple(peer for peer, _ in self.votes)

    def to_json(self) -> dict[str, Json]:
        return {
            "ballot": self.ballot.to_json(),
            "absent": [str(peer) for peer in self.absent],
            "votes": [[peer, signature.hex()] for peer, signature in self.votes],
            **({"goodbyes": [goodbye.to_json() for goodbye in self.goodbyes]} if self.goodbyes else {}),
            **({"mandate": self.mandate.to_json()} if self.mandate else {}),
        }


def parse_certificate(fields: Fields) -> Certificate:
    """Check the form of a certificate from the network or a file, not what it says.

    Raises:
        ProtocolError: a field is missing, of the wrong type or out of range.
    """
    votes = []
    for item in fields.items("votes", MAX_PARTICIPANTS):
        if not isinstance(item, list) or len(item) != 2:
            raise ProtocolError(f"{fields.kind}.votes: expected [peer, signature] pairs")
        votes.append((PeerId(checked_text("votes.peer", item[0], MAX_NAME)), parse_signature(item[1])))
    names = [peer for peer, _ in votes]
    absent = fields.texts("absent", MAX_PARTICIPANTS)
    if not names or names != sorted(set(names)) or list(absent) != sorted(set(absent)):
        raise ProtocolError(f"{fields.kind}: expected voters and absent peers in ascending order")
    goodbyes = fields.items("goodbyes", MAX_PARTICIPANTS) if fields.has("goodbyes") else []
    return Certificate(
        ballot=parse_ballot(fields),
        absent=tuple(PeerId(peer) for peer in absent),
        votes=tuple(votes),
        goodbyes=tuple(parse_goodbye(Fields("goodbye", item)) for item in goodbyes),
        mandate=parse_mandate(fields.inner("mandate")) if fields.has("mandate") else None,
    )


def parse_goodbye(fields: Fields) -> Goodbye:
    """Check the form of a goodbye.

    Raises:
        ProtocolError: a field is missing, of the wrong type or out of range.
    """
    return Goodbye(
        PeerId(fields.text("peer", MAX_NAME)),
        fields.integers("outer_steps", 100_000),
        parse_signature(fields.text("signature", MAX_SIGNATURE)),
    )


def parse_signature(value: Json) -> bytes:
    """Read a signature in hex.

    Raises:
        ProtocolError: it is none.
    """
    text = checked_text("signature", value, MAX_SIGNATURE)
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise ProtocolError(f"signature: expected hex digits, got {text!r:.80}") from error


def is_quorum(peers: Collection[PeerId], electorate: Collection[PeerId], absent: Collection[PeerId]) -> bool:
    """Whether these are more than half of the electorate without the absent; anybody where nobody is left."""
    members = set(electorate) - set(absent)
    return 2 * len(members & set(peers)) > len(members) or (not members and len(peers) > 0)


def check_certificate(
    entry: Entry,
    certificate: Certificate,
    electorate: Collection[PeerId] | None,
    verify: Verify,
    *,
    majority: bool,
    min_participants: int,
    authority: Authority | None = None,
) -> None:
    """See whether an entry was chosen by those who may.

    Args:
        electorate: of its outer step: the participants of the entry before; None where that isn't known.
        majority: whether nobody may be absent but one who has said goodbye.
        authority: whose mandates count; asked where the electorate is known.

    Raises:
        ProtocolError: it says what is missing.
    """
    step = f"fragment {entry.fragment}, outer step {entry.outer_step}"
    if len(entry.participants) < min_participants:
        raise ProtocolError(
            f"{step}: {len(entry.participants)} took part, at least {min_participants} have to"
        )
    mandate = certificate.mandate
    if mandate is not None:
        _check_mandate(entry, mandate, electorate, authority, step, majority=majority)
        electorate = mandate.members
    message = vote_bytes(
        entry.run_id,
        entry.fragment,
        entry.outer_step,
        certificate.ballot,
        certificate.absent,
        entry.hash,
        mandate.digest if mandate else None,
    )
    for peer, signature in certificate.votes:
        if not verify(peer, message, signature):
            raise ProtocolError(f"{step}: the vote of {peer} is not its own")
    absent = set(certificate.absent)
    if absent & set(certificate.voters):
        raise ProtocolError(f"{step}: who is said to be absent has voted")
    if majority and absent:
        _check_goodbye(entry, certificate, verify, step)
    if electorate is not None and not is_quorum(certificate.voters, electorate, absent):
        raise ProtocolError(
            f"{step}: {', '.join(certificate.voters)} have voted for it, which is no majority of those who "
            f"may decide: {', '.join(sorted(set(electorate) - absent))}"
        )


def _check_mandate(
    entry: Entry,
    mandate: Mandate,
    electorate: Collection[PeerId] | None,
    authority: Authority | None,
    step: str,
    *,
    majority: bool,
) -> None:
    """An operator's decision counts for the entry after the head that it names, and where it was needed."""
    if not majority:
        raise ProtocolError(f"{step}: {mandate}: with partition = continue nobody needs one")
    if not mandate.follows(entry.fragment, entry.outer_step - 1, entry.previous):
        raise ProtocolError(f"{step}: {mandate} is about another outer step")
    if electorate is None:
        return
    if authority is None:
        raise ProtocolError(f"{step}: {mandate}: nobody may give one here")
    authority.check(mandate)
    # where it is in force already its members are the electorate that is asked for
    if set(electorate) != set(mandate.members) and is_quorum(mandate.members, electorate, ()):
        raise ProtocolError(f"{step}: {mandate}: they are most of those who may decide, so it was not needed")


def _check_goodbye(entry: Entry, certificate: Certificate, verify: Verify, step: str) -> None:
    """With `majority`: one that has said goodbye, after the round before at the earliest, may be left out."""
    said = {goodbye.peer: goodbye for goodbye in certificate.goodbyes}
    for peer in certificate.absent:
        goodbye = said.get(peer)
        if (
            len(certificate.absent) > 1
            or goodbye is None
            or len(goodbye.outer_steps) <= entry.fragment
            or goodbye.outer_steps[entry.fragment] < entry.outer_step - 2
            or not verify(peer, goodbye_bytes(entry.run_id, peer, goodbye.outer_steps), goodbye.signature)
        ):
            raise ProtocolError(f"{step}: {peer} was left out, and has not said goodbye")
