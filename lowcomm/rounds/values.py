"""What a round machine is told, what it answers with, and what it has to say of a ballot that has ended."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, cast, get_args

from lowcomm.algorithms.intervals import UNMEASURED, Speed
from lowcomm.errors import ProtocolError
from lowcomm.exchanges.fields import Fields
from lowcomm.ledger.certificate import (
    Ballot,
    Certificate,
    Goodbye,
    parse_ballot,
    parse_goodbye,
)
from lowcomm.ledger.credits import parse_samples
from lowcomm.ledger.entry import (
    MAX_PARTICIPANTS,
    MAX_TOKENS,
    MAX_TOTAL_TOKENS,
    ContributionId,
    Entry,
    parse_entry,
    parse_sum,
)
from lowcomm.ledger.mandate import MAX_SIGNATURE, Mandate, parse_mandate
from lowcomm.peers.peer import Chains, State
from lowcomm.rounds.roster import Roster, parse_speed
from lowcomm.spans import Spans, flat, size
from lowcomm.types import BallotEnd, Digest, Json, PeerId, Reason, ReasonKind


@dataclass(frozen=True, slots=True)
class Slot:
    """What is decided: the outer step of a fragment that follows a head, and by whom.

    Attributes:
        electorate: the participants of the entry before, or the founders; empty where nobody knows them. The
            members of a mandate where one is in force.
        total_tokens: that the chain has counted before.
    """

    outer_step: int
    previous: Digest
    electorate: tuple[PeerId, ...]
    total_tokens: int
    mandate: Mandate | None = None

    @property
    def goes_by(self) -> Digest | None:
        """The mandate in force, by its name."""
        return self.mandate.digest if self.mandate else None


@dataclass(frozen=True, slots=True)
class Offer:
    """What an island says of its contribution.

    Attributes:
        samples: which ones it was trained on; empty where the island doesn't say, and in all fragments but
            the first.
    """

    id: ContributionId
    norm: float
    inner_step: int
    speed: Speed = UNMEASURED
    samples: Spans = ()

    @property
    def tokens(self) -> int:
        return self.id.tokens


def _accepted_json(accepted: tuple[Ballot, Entry] | None) -> Json:
    if accepted is None:
        return None
    return {"ballot": accepted[0].to_json(), "entry": accepted[1].to_json()}


def _parse_accepted(fields: Fields) -> tuple[Ballot, Entry] | None:
    if not fields.has("accepted"):
        return None
    inner = fields.inner("accepted")
    return parse_ballot(inner), parse_entry(inner.inner("entry"))


@dataclass(frozen=True, slots=True)
class Ready:
    """A peer's announcement that it is due: its head, its contribution, its promises.

    Attributes:
        promised: the highest ballot that it has joined.
        accepted: the update that it has voted for, and in which ballot.
        stalled: peers whose data did not reach it lately.
        rates: at which data came from each member of the electorate lately, see `Rates.told`.
        mandate: by which it goes, if by any.
    """

    previous: Digest
    offer: Offer
    promised: Ballot
    accepted: tuple[Ballot, Entry] | None
    stalled: tuple[PeerId, ...] = ()
    rates: str = ""
    mandate: Digest | None = None

    def to_json(self) -> dict[str, Json]:
        return {
            "previous": self.previous,
            "tokens": self.offer.id.tokens,
            "start": self.offer.id.start,
            "sum": self.offer.id.sum,
            "norm": self.offer.norm,
            "inner_step": self.offer.inner_step,
            "promised": self.promised.to_json(),
            "accepted": _accepted_json(self.accepted),
            "speed": list(self.offer.speed),
            **({"samples": list(flat(self.offer.samples))} if self.offer.samples else {}),
            "stalled": [str(peer) for peer in self.stalled],
            **({"rates": self.rates} if self.rates else {}),
            **({"mandate": self.mandate} if self.mandate else {}),
        }


def parse_ready(fields: Fields) -> Ready:
    """Check and build a `Ready` from the network.

    Raises:
        ProtocolError: a field is missing, of the wrong type or out of range.
    """
    norm = fields.number("norm")
    if norm < 0:
        raise ProtocolError(f"ready.norm: expected 0 or more, got {norm}")
    named = ContributionId(
        fields.integer("start", 0, MAX_TOTAL_TOKENS),
        fields.integer("tokens", 0, MAX_TOKENS),
        parse_sum(fields.text("sum")),
    )
    speed = parse_speed("ready.speed", fields.items("speed", 2))
    samples = parse_samples(fields, "samples") if fields.has("samples") else ()
    if size(samples) > named.tokens:
        raise ProtocolError(f"ready.samples: expected at most one for each of {named.tokens} tokens")
    return Ready(
        previous=fields.digest("previous"),
        offer=Offer(named, norm, fields.integer("inner_step"), speed, samples),
        promised=parse_ballot(fields, "promised"),
        accepted=_parse_accepted(fields),
        stalled=tuple(PeerId(peer) for peer in fields.texts("stalled", MAX_PARTICIPANTS)),
        rates=fields.text("rates", MAX_PARTICIPANTS) if fields.has("rates") else "",
        mandate=fields.digest("mandate") if fields.has("mandate") else None,
    )


@dataclass(frozen=True, slots=True)
class Vote:
    """A participant holds the whole update: which entry it makes, and the state after it; signed.

    Attributes:
        absent, mandate: of the roster that it has joined, as they are signed with it.
    """

    entry: Digest
    state: Digest
    signature: bytes
    absent: tuple[PeerId, ...] = ()
    mandate: Digest | None = None

    def is_for(self, roster: Roster) -> bool:
        """Whether the signature is one for this roster's certificate."""
        return (self.absent, self.mandate) == (roster.absent, roster.mandate)


def decided_json(roster: Roster, entry: Digest, certificate: Certificate) -> dict[str, Json]:
    """What a leader tells of its ballot: the certificate, less what the participants know from the roster."""
    voters = certificate.voters
    return {
        "ballot": certificate.ballot.to_json(),
        "entry": entry,
        "silent": [str(peer) for peer in roster.peers if peer not in set(voters)],
        "votes": base64.b64encode(b"".join(signature for _, signature in certificate.votes)).decode(),
        "goodbyes": [goodbye.to_json() for goodbye in certificate.goodbyes],
        **({"mandate": certificate.mandate.to_json()} if certificate.mandate else {}),
    }


def parse_decided(fields: Fields, roster: Roster) -> tuple[Digest, Certificate]:
    """Check the form of what the leader of a roster's ballot says is decided, not the signatures.

    Raises:
        ProtocolError: a field is missing, of the wrong type or out of range.
    """
    silent = set(fields.texts("silent", MAX_PARTICIPANTS))
    voters = [peer for peer in roster.peers if peer not in silent]
    text = fields.text("votes", MAX_SIGNATURE * MAX_PARTICIPANTS)
    try:
        signatures = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ProtocolError("decided.votes: expected signatures in base 64") from error
    size, rest = divmod(len(signatures), max(1, len(voters)))
    if not size or rest:
        raise ProtocolError(f"decided.votes: expected those of {len(voters)}, got {len(signatures)} bytes")
    votes = tuple((peer, signatures[i * size : (i + 1) * size]) for i, peer in enumerate(voters))
    goodbyes = fields.items("goodbyes", MAX_PARTICIPANTS)
    return fields.digest("entry"), Certificate(
        ballot=roster.ballot,
        absent=roster.absent,
        votes=votes,
        goodbyes=tuple(parse_goodbye(Fields("goodbye", item)) for item in goodbyes),
        mandate=parse_mandate(fields.inner("mandate")) if fields.has("mandate") else None,
    )


def parse_reason(fields: Fields) -> Reason:
    """Check and build the reason that a participant gives for an abort.

    Raises:
        ProtocolError: a field is missing, of the wrong type or out of range.
    """
    kind = fields.text("kind")
    if kind not in get_args(ReasonKind):
        raise ProtocolError(f"{fields.kind}.kind: expected a known reason, got {kind!r:.80}")
    blamed = tuple(PeerId(peer) for peer in fields.texts("blamed", MAX_PARTICIPANTS))
    return Reason(cast("ReasonKind", kind), fields.text("reason", 500), blamed)


class Seen(NamedTuple):
    """A live island as this peer sees it.

    Attributes:
        stalled: it has made no step for longer than it ever takes.
        answered_s: when the newest heartbeat was sent to it that it has answered.
    """

    state: State
    stalled: bool = False
    answered_s: float = 0.0

    def head(self, fragment: int) -> Digest | None:
        """Of a fragment; None where it doesn't train, or doesn't say."""
        state = self.state
        heads = state.chains.heads if state.phase == "training" else ()
        return heads[fragment] if fragment < len(heads) else None


@dataclass(frozen=True)
class View:
    """The swarm as this peer sees it.

    Attributes:
        live: islands that are linked, heard and not put out; this peer is not among them.
        phase: of this peer.
        unheard_s: for how much of this peer's waking time others have said nothing; infinite where they never
            have.
        goodbyes: of those that have left in order.
        banned: whom this peer has put out.
    """

    live: Mapping[PeerId, Seen]
    phase: str
    unheard_s: Mapping[PeerId, float]
    goodbyes: Mapping[PeerId, Goodbye]
    banned: frozenset[PeerId] = frozenset()

    @cached_property
    def training(self) -> frozenset[PeerId]:
        """Those that train."""
        return frozenset(peer for there in self._places.values() for peer in there)

    @cached_property
    def _places(self) -> Mapping[Chains, list[PeerId]]:
        places: dict[Chains, list[PeerId]] = {}
        for peer, seen in self.live.items():
            if seen.state.phase == "training":
                places.setdefault(seen.state.chains, []).append(peer)
        return places

    def at(self, fragment: int, head: Digest) -> set[PeerId]:
        """Those whose chain of a fragment has this head."""
        places = self._places.items()
        return {
            p for place, there in places if place.heads[fragment : fragment + 1] == (head,) for p in there
        }

    def unheard(self, peer: PeerId) -> float:
        """Seconds for which nothing has come from a peer; 0 where it is live."""
        return 0.0 if peer in self.live else self.unheard_s.get(peer, float("inf"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What an acceptor has to remember over a crash, of the newest outer step in which it took part.

    Attributes:
        promised: the highest ballot that it has joined.
        peers: the participants of that ballot.
        accepted: the update that it has voted for, and in which ballot.
    """

    fragment: int
    outer_step: int
    previous: Digest
    promised: Ballot
    peers: tuple[PeerId, ...]
    accepted: tuple[Ballot, Entry] | None

    @property
    def order(self) -> tuple[int, Ballot, Ballot]:
        """Which of two records of a fragment is the later one."""
        return self.outer_step, self.promised, self.accepted[0] if self.accepted else Ballot(0, "")

    def to_json(self) -> dict[str, Json]:
        return {
            "fragment": self.fragment,
            "outer_step": self.outer_step,
            "previous": self.previous,
            "promised": self.promised.to_json(),
            "peers": [str(peer) for peer in self.peers],
            "accepted": _accepted_json(self.accepted),
        }


def parse_record(fields: Fields) -> Record:
    """Check and build a record from a file.

    Raises:
        ProtocolError: a field is missing, of the wrong type or out of range.
    """
    return Record(
        fragment=fields.integer("fragment"),
        outer_step=fields.integer("outer_step", 1),
        previous=fields.digest("previous"),
        promised=parse_ballot(fields, "promised"),
        peers=tuple(PeerId(peer) for peer in fields.texts("peers", MAX_PARTICIPANTS)),
        accepted=_parse_accepted(fields),
    )


@dataclass(frozen=True, slots=True)
class Call:
    """What others want with a fragment, for the training thread to read.

    Attributes:
        ahead: some have committed more of it.
        ready: they have, or are ready for the next outer step, which this island is not.
    """

    ahead: bool
    ready: bool


# -- what a machine wants done -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a control message about this outer step to these peers."""

    peers: tuple[PeerId, ...]
    kind: str
    body: dict[str, Json]


@dataclass(frozen=True, slots=True)
class Propose:
    """Sign a roster and send it to all live islands."""

    roster: Roster


@dataclass(frozen=True, slots=True)
class Keep:
    """Write a record down, and say so (`on_kept`, `on_not_kept`)."""

    record: Record


@dataclass(frozen=True, slots=True)
class Forget:
    """The record on disk binds nobody any more."""


@dataclass(frozen=True, slots=True)
class Reduce:
    """Exchange the pseudo-gradients of a ballot (`on_staged`, `on_broken`)."""

    roster: Roster
    sent: ContributionId


@dataclass(frozen=True, slots=True)
class Finish:
    """Get hold of the update that a roster names (`on_staged`, `on_broken`)."""

    roster: Roster


@dataclass(frozen=True, slots=True)
class Drop:
    """End what is being done for a ballot."""

    ballot: Ballot


@dataclass(frozen=True, slots=True)
class Ended:
    """A ballot has ended without a commit here; or was committed without somebody's vote."""

    end: BallotEnd


@dataclass(frozen=True, slots=True)
class CastVote:
    """Sign a vote, send it, and count it here (`on_vote`).

    Attributes:
        to: the leader, which gathers the votes; or all participants, where it does not.
    """

    roster: Roster
    entry: Entry
    to: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class TellDecided:
    """Tell participants of a ballot what is decided, with the certificate (`on_certificate`)."""

    roster: Roster
    entry: Entry
    certificate: Certificate


@dataclass(frozen=True, slots=True)
class Commit:
    """The outer step is decided: apply the entry, and begin the next one (`begin`)."""

    entry: Entry
    certificate: Certificate


@dataclass(frozen=True, slots=True)
class Reject:
    """A peer's contribution is not accepted.

    Attributes:
        accuser: who has seen it, if not this peer itself.
    """

    peer: PeerId
    reason: str
    accuser: PeerId | None = None


@dataclass(frozen=True, slots=True)
class AskForCertificate:
    """A peer has committed what is accepted here (`on_certificate`)."""

    peer: PeerId


Action = (
    Tell
    | Propose
    | Keep
    | Forget
    | Reduce
    | Finish
    | Drop
    | Ended
    | CastVote
    | TellDecided
    | Commit
    | Reject
    | AskForCertificate
)
