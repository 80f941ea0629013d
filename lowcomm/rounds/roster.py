"""Ballots, rosters, and who leads.

A roster is the signed proposal of one ballot: who takes part with which weight, and which peer
reduces which range of the fragment. In `reduce` mode the participants exchange their
pseudo-gradients; in `finalise` mode they commit an update that one of them has already accepted in
an earlier ballot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgpack

from lowcomm.algorithms.intervals import MAX_STEP_S, UNMEASURED, Speed
from lowcomm.errors import ProtocolError
from lowcomm.exchanges.base import Signer
from lowcomm.exchanges.fields import Fields, checked_float, checked_int, checked_text
from lowcomm.ledger.certificate import NO_BALLOT, Ballot, parse_ballot
from lowcomm.ledger.credits import parse_samples
from lowcomm.ledger.entry import (
    MAX_PARTICIPANTS,
    MAX_TOKENS,
    MAX_TOTAL_TOKENS,
    SUM_LENGTH,
    Entry,
    hash_value,
    parse_entry,
    parse_sum,
)
from lowcomm.spans import Spans, flat
from lowcomm.types import Digest, Json, PeerId

NO_SUM = "0" * SUM_LENGTH
MAX_LEAP = 1_000
"""A ballot so far above all that were seen is no attempt but an attempt to use them up."""


@dataclass(frozen=True, slots=True)
class Participant:
    """One peer in a roster.

    Attributes:
        tokens: its weight in the mean.
        start, sum: which contribution it is, see `ContributionId`.
        samples: which ones it was trained on; empty where it doesn't say.
        norm: L2 norm of its pseudo-gradient.
        inner_step: where it stood when it became due; who is out of step takes over the furthest.
        speed: as it has measured it; all derive from these how many inner steps each takes next.
    """

    peer: PeerId
    tokens: int
    norm: float
    inner_step: int
    speed: Speed = UNMEASURED
    start: int = 0
    sum: str = NO_SUM
    samples: Spans = ()


@dataclass(frozen=True, kw_only=True)
class Roster:
    """What a leader proposes for one ballot.

    Attributes:
        previous: the head that all participants share.
        participants: ascending by peer id, the order of summation.
        stops: ends of the participants' ranges, one each, ascending.
        entry: the update to finalise, or None to reduce.
        accepted_in: the ballot in which `entry` was accepted.
        holders: who said that it has accepted `entry`, so has its update.
        absent: members of the electorate that are left out of it.
        mandate: by which it goes, if by any.
    """

    fragment: int
    outer_step: int
    ballot: Ballot
    previous: Digest
    participants: tuple[Participant, ...]
    stops: tuple[int, ...]
    chunk_elements: int
    entry: Entry | None
    accepted_in: Ballot = NO_BALLOT
    holders: tuple[PeerId, ...] = ()
    absent: tuple[PeerId, ...] = ()
    mandate: Digest | None = None

    @cached_property
    def peers(self) -> tuple[PeerId, ...]:
        return tuple(member.peer for member in self.participants)

    def to_json(self) -> dict[str, Json]:
        return {
            "fragment": self.fragment,
            "outer_step": self.outer_step,
            "ballot": self.ballot.to_json(),
            "previous": self.previous,
            "participants": [
                [m.peer, m.tokens, m.norm, m.inner_step, *m.speed, m.start, m.sum, list(flat(m.samples))]
                for m in self.participants
            ],
            "stops": list(self.stops),
            "chunk_elements": self.chunk_elements,
            "entry": self.entry.to_json() if self.entry else None,
            "accepted_in": self.accepted_in.to_json(),
            "holders": [str(peer) for peer in self.holders],
            "absent": [str(peer) for peer in self.absent],
            **({"mandate": self.mandate} if self.mandate else {}),
        }

    def signed_bytes(self, run_id: str) -> bytes:
        """What the leader signs."""
        packed: bytes = msgpack.packb(["lowcomm roster", run_id, self.to_json()])
        return packed


def parse_speed(where: str, items: Sequence[Json]) -> Speed:
    """Check and build a speed from [step_s, step_tokens].

    Raises:
        ProtocolError: it isn't that, or out of range.
    """
    if len(items) != 2:
        raise ProtocolError(f"{where}: expected [step_s, step_tokens]")
    step_s = checked_float(where, items[0])
    if not 0.0 <= step_s <= MAX_STEP_S:
        raise ProtocolError(f"{where}: expected 0..{MAX_STEP_S:g} seconds, got {step_s:g}")
    return Speed(step_s, checked_int(where, items[1], 0, 1 << 62))


def parse_roster(fields: Fields) -> Roster:
    """Check and build a roster from the network.

    Raises:
        ProtocolError: a field is missing, of the wrong type, or contradicts another.
    """
    participants = []
    for item in fields.items("participants", MAX_PARTICIPANTS):
        if not isinstance(item, list) or len(item) != 9:
            raise ProtocolError(
                "roster.participants: expected [peer, tokens, norm, inner_step, step_s, step_tokens, start, "
                "sum, samples]"
            )
        participants.append(
            Participant(
                PeerId(checked_text("roster.peer", item[0], 128)),
                checked_int("roster.tokens", item[1], 0, MAX_TOKENS),
                checked_float("roster.norm", item[2]),
                checked_int("roster.inner_step", item[3], 0, 1 << 62),
                parse_speed("roster.speed", item[4:6]),
                checked_int("roster.start", item[6], 0, MAX_TOTAL_TOKENS),
                parse_sum(item[7]),
                parse_samples(Fields("roster", {"samples": item[8]}), "samples"),
            )
        )
    names = [member.peer for member in participants]
    stops = fields.integers("stops", MAX_PARTICIPANTS)
    if not names or names != sorted(set(names)):
        raise ProtocolError("roster.participants: expected distinct peers in ascending order")
    if len(stops) != len(names) or list(stops) != sorted(stops):
        raise ProtocolError("roster.stops: expected one ascending stop per participant")
    entry = parse_entry(fields.inner("entry")) if fields.has("entry") else None
    accepted_in = parse_ballot(fields, "accepted_in")
    if (entry is None) != (accepted_in == NO_BALLOT):
        raise ProtocolError("roster: expected an accepted update together with its ballot")
    absent = tuple(PeerId(peer) for peer in fields.texts("absent", MAX_PARTICIPANTS))
    if set(absent) & set(names) or list(absent) != sorted(set(absent)):
        raise ProtocolError("roster.absent: expected peers in ascending order that take no part")
    return Roster(
        fragment=fields.integer("fragment"),
        outer_step=fields.integer("outer_step", 1),
        ballot=parse_ballot(fields),
        previous=fields.digest("previous"),
        participants=tuple(participants),
        stops=stops,
        chunk_elements=fields.integer("chunk_elements", 1),
        entry=entry,
        accepted_in=accepted_in,
        holders=tuple(PeerId(peer) for peer in fields.texts("holders", MAX_PARTICIPANTS)),
        absent=absent,
        mandate=fields.digest("mandate") if fields.has("mandate") else None,
    )


def parse_signed_roster(fields: Fields, sender: PeerId, signer: Signer) -> Roster:
    """Check and build a roster that its leader has sent and signed.

    Raises:
        ProtocolError: it is malformed, not the sender's to propose, or not signed by it.
    """
    roster = parse_roster(fields.inner("roster"))
    if roster.ballot.leader != sender:
        raise ProtocolError(f"roster of {sender}: it names leader {roster.ballot.leader}")
    signature = bytes.fromhex(fields.text("signature", 1_024))
    if not signer.verify(sender, roster.signed_bytes(signer.run_id), signature):
        raise ProtocolError(f"roster of {sender}: the signature is not the leader's")
    return roster


def leader_order(peers: Iterable[PeerId], run_id: str, fragment: int, outer_step: int) -> list[PeerId]:
    """The peers in the order in which they lead this outer step."""
    return sorted(peers, key=lambda peer: leader_rank(peer, run_id, fragment, outer_step))


def leader_rank(peer: PeerId, run_id: str, fragment: int, outer_step: int) -> str:
    """Peers lead an outer step in ascending order of it: pseudo-random, the same for all."""
    return hash_value([run_id, fragment, outer_step, peer])
