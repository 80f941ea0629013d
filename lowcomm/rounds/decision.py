"""What one outer step of one fragment is decided from, and the small values it is made of."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field

from torch import Tensor

from lowcomm.algorithms.intervals import UNMEASURED, Speed
from lowcomm.arguments import number, show, whole
from lowcomm.codecs.base import Codec
from lowcomm.errors import ArgumentError, ConfigError, ProtocolError
from lowcomm.exchanges.base import Exchange
from lowcomm.exchanges.fields import MAX_NAME, Fields, checked_int, checked_text
from lowcomm.islands.vectors import Difference, HostVector, Vector
from lowcomm.ledger.blobs import Blobs
from lowcomm.ledger.entry import MAX_PARTICIPANTS, MAX_TOKENS, Entry, parse_entry
from lowcomm.ledger.residual import Residual
from lowcomm.ledger.state import FragmentState, OuterState
from lowcomm.ledger.update import Update
from lowcomm.peers.table import Peers
from lowcomm.rounds.claims import Limits
from lowcomm.rounds.promises import Promises
from lowcomm.rounds.rates import MAX_RATE, Rates
from lowcomm.rounds.roster import NO_BALLOT, Ballot, Participant, Roster, parse_ballot, parse_speed
from lowcomm.rounds.transfer import Transfer
from lowcomm.types import Digest, Json, PeerId

MAX_SENT = 2
"""Contributions to one outer step that are kept; each is as large as the fragment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPolicy:
    """Who must take part, and how long anybody waits.

    Attributes:
        min_participants: fewer never commit.
        deadline_s: longest wait for live peers that are not ready, and for a transfer that stalls.
        partition: `continue` lets whoever is left go on; `majority` only more than half of the
            participants of the round before.
        limits: what a contribution may claim.

    Raises:
        ConfigError: one is of another type, or out of range.
    """

    min_participants: int = 1
    deadline_s: float = 60.0
    partition: str = "continue"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        least = whole("RoundPolicy: min_participants", self.min_participants, least=1)
        object.__setattr__(self, "min_participants", least)
        object.__setattr__(self, "deadline_s", number("RoundPolicy: deadline_s", self.deadline_s, above=0))
        if self.partition not in ("continue", "majority"):
            raise ConfigError(
                f"RoundPolicy: partition: expected 'continue' or 'majority', got {show(self.partition)}"
            )
        if not isinstance(self.limits, Limits):
            raise ArgumentError(f"RoundPolicy: limits: expected Limits(...), got {show(self.limits)}")


@dataclass(slots=True)
class Context:
    """What all fragments' rounds of one peer share.

    Attributes:
        promises: where votes are kept over a crash; None = nowhere.
        founders: islands that were there, or expected, when this one joined, itself included.
        rates: at which contributions came in.
    """

    exchange: Exchange
    peers: Peers
    blobs: Blobs
    state: OuterState
    codec: Codec
    policy: RoundPolicy
    pool: Executor
    chunk_elements: int
    promises: Promises | None = None
    founders: int = 1
    rates: Rates = field(default_factory=Rates)


@dataclass(frozen=True, slots=True)
class Contribution:
    """One island's pseudo-gradient for one fragment: 1-D fp32 on the host, and what it weighs.

    `resent`: it comes from a checkpoint, so an entry with this peer and these tokens is its commit.
    `speed`: of the island, as measured lately.
    """

    values: Tensor
    tokens: int
    norm: float
    inner_step: int
    resent: bool = False
    speed: Speed = UNMEASURED


@dataclass(frozen=True, slots=True)
class Ready:
    """A peer's announcement that it is due: its head, its weight, its promises.

    `rates`: bytes per second that came from other peers in its latest transfers.
    `speed`: at which it trains.
    """

    previous: Digest
    tokens: int
    norm: float
    inner_step: int
    promised: Ballot
    accepted: tuple[Ballot, Entry] | None
    rates: Mapping[PeerId, int] = field(default_factory=dict)
    speed: Speed = UNMEASURED

    def to_json(self) -> dict[str, Json]:
        accepted: Json = None
        if self.accepted is not None:
            accepted = {"ballot": self.accepted[0].to_json(), "entry": self.accepted[1].to_json()}
        return {
            "previous": self.previous,
            "tokens": self.tokens,
            "norm": self.norm,
            "inner_step": self.inner_step,
            "promised": self.promised.to_json(),
            "accepted": accepted,
            "speed": list(self.speed),
            **({"rates": [[peer, rate] for peer, rate in self.rates.items()]} if self.rates else {}),
        }


def parse_ready(fields: Fields) -> Ready:
    """Check and build a `Ready` from the network.

    Raises:
        ProtocolError: a field is missing, of the wrong type or out of range.
    """
    accepted = None
    if fields.has("accepted"):
        inner = fields.inner("accepted")
        accepted = (parse_ballot(inner), parse_entry(inner.inner("entry")))
    norm = fields.number("norm")
    if norm < 0:
        raise ProtocolError(f"ready.norm: expected 0 or more, got {norm}")
    return Ready(
        previous=fields.digest("previous"),
        tokens=fields.integer("tokens", 0, MAX_TOKENS),
        norm=norm,
        inner_step=fields.integer("inner_step"),
        promised=parse_ballot(fields, "promised"),
        accepted=accepted,
        rates=_parse_rates(fields),
        speed=parse_speed("ready.speed", fields.items("speed", 2)),
    )


def _parse_rates(fields: Fields) -> dict[PeerId, int]:
    rates: dict[PeerId, int] = {}
    if not fields.has("rates"):
        return rates
    for item in fields.items("rates", MAX_PARTICIPANTS):
        if not isinstance(item, list) or len(item) != 2:
            raise ProtocolError("ready.rates: expected [peer, bytes per second]")
        rates[PeerId(checked_text("ready.rates", item[0], MAX_NAME))] = checked_int(
            "ready.rates", item[1], 1, MAX_RATE
        )
    return rates


@dataclass(frozen=True, slots=True)
class Accepted:
    """An update that this peer holds whole and has voted for.

    `contribution` is what this peer put into it; None if it was finalised without this peer's. `unsent`: what
    of it stays in the local parameters, as encoding lost it; None for nothing.
    """

    ballot: Ballot
    entry: Entry
    update: Update
    after: FragmentState
    residual: Residual | None
    unsent: Vector | None
    mean_norm: float | None
    contribution: Contribution | None
    participants: tuple[Participant, ...]

    def sent(self, contribution: Contribution) -> Vector:
        """What of `contribution`, this peer's part of the entry, has arrived: without what encoding lost."""
        values = HostVector(contribution.values)
        return values if self.unsent is None else Difference(values, self.unsent)


@dataclass(slots=True)
class Decision:
    """What one peer knows and has promised about the next outer step of a fragment.

    Attributes:
        promised: no vote is ever cast in a lower ballot.
        seen: the highest ballot that any roster had.
        busy: peers that a ballot under way holds; they are not proposed to until they say they are free.
        accepted: the update this peer has voted for; it joins only ballots that finalise it.
        voted: the newest updates that it has ever voted for, by the head they lead to; others may have
            committed one although this peer has seen a vote that differs.
        sent: contributions to ballots of this outer step, each once, oldest first; others may finish one that
            was broken off here, however long ago. So there are never more than `MAX_SENT`.
        ready, told: this peer's announcement, and who has got it.
        roster, transfer, task: the ballot under way, if any.
        ended: the ballot that has failed here last.
        votes: (entry hash, state digest) of each voter, by ballot.
        avoid: peers that were seen to stall a ballot; left out of the next one.
        rejected: peers whose contribution to this outer step is not accepted.
        unformed: why the leader could not form a roster.
        refusal: why this outer step can't be decided here at all (digests differ, NaN).
    """

    outer_step: int
    promised: Ballot = NO_BALLOT
    seen: Ballot = NO_BALLOT
    busy: set[PeerId] = field(default_factory=set)
    accepted: Accepted | None = None
    voted: dict[Digest, Accepted] = field(default_factory=dict)
    contribution: Contribution | None = None
    sent: list[Contribution] = field(default_factory=list)
    ready: Ready | None = None
    told: set[PeerId] = field(default_factory=set)
    roster: Roster | None = None
    transfer: Transfer | None = None
    task: asyncio.Task[None] | None = None
    ended: Roster | None = None
    readies: dict[PeerId, Ready] = field(default_factory=dict)
    first_ready_s: float = 0.0
    votes: dict[Ballot, dict[PeerId, tuple[Digest, Digest]]] = field(default_factory=dict)
    avoid: set[PeerId] = field(default_factory=set)
    rejected: set[PeerId] = field(default_factory=set)
    unformed: str = ""
    refusal: str = ""
    failures: list[str] = field(default_factory=list)
    ballots: int = 0
    progress_s: float = 0.0
    joined_s: float = 0.0
    accepted_s: float = 0.0

    def to_send(self, contribution: Contribution) -> Contribution:
        """What to announce: `contribution`, or the newest sent one where others may still finish too many."""
        return contribution if len(self.sent) < MAX_SENT else self.sent[-1]

    def note_sent(self, contribution: Contribution) -> None:
        """A ballot begins to which this peer sends `contribution`."""
        if all(sent is not contribution for sent in self.sent):
            self.sent.append(contribution)

    def unsend(self, contribution: Contribution) -> None:
        """Nobody can have the whole of it."""
        self.sent = [sent for sent in self.sent if sent is not contribution]

    def sent_in(self, entry: Entry, peer: PeerId) -> Contribution | None:
        """What this peer, `peer`, had sent into an entry that others finished; told by its tokens."""
        tokens = entry.tokens_of(peer)
        return next((sent for sent in reversed(self.sent) if sent.tokens == tokens), None)
