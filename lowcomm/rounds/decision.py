"""What one peer knows and has promised about the outer step that is decided next."""

from __future__ import annotations

from dataclasses import dataclass, field

from lowcomm.ledger.certificate import NO_BALLOT, Ballot
from lowcomm.ledger.entry import ContributionId, Entry
from lowcomm.rounds.proposal import Edge
from lowcomm.rounds.roster import Roster
from lowcomm.rounds.values import Offer, Ready, Slot, Vote
from lowcomm.types import Digest, PeerId, Reason


@dataclass(slots=True)
class UnderWay:
    """The ballot that this peer is in.

    Attributes:
        kept: its promise is on disk, so data may leave.
        entry: what it has come to here, once the whole update is held.
        voted: the vote is on disk and has been sent.
        lost: whose vote can't come any more.
        spread: votes go to all, as the leader does not gather them.
    """

    roster: Roster
    joined_s: float
    progress_s: float
    kept: bool = False
    entry: Entry | None = None
    voted: bool = False
    lost: set[PeerId] = field(default_factory=set)
    spread: bool = False


@dataclass(slots=True)
class Decision:
    """What this peer knows and has promised about one slot.

    Attributes:
        promised: the highest ballot that it has joined.
        seen: the highest ballot that any roster or refusal had.
        accepted: the update that it has voted for, and in which ballot.
        voted: the newest entries that it has ever voted for; others may have committed one although this peer
            has seen a vote that differs.
        sent: contributions that others may hold, each once, oldest first; never more than `MAX_SENT`.
        joined: of ballots that finish an update: who has said that it has joined, and which update that is.
        ready, told: this peer's announcement, and who has got it.
        callers: who leads this outer step, as it finds itself, and has said that others are ready.
        called: whom this peer, leading it, has told that.
        busy: peers that a ballot under way holds; they are not proposed to until they say they are free.
        opened_s: since when somebody has been ready; 0 = nobody has.
        first_ready_s: since when the next ballot is waited for.
        proposals, propose_from_s: rosters that this peer has proposed, and when it may propose another one.
        ended: the ballot that has failed here last.
        aborts: what participants have said of the ballot promised last, whose roster has not come here.
        edges: between whom data did not pass, as this outer step has shown.
        quits: how often each has ended a ballot without naming anybody.
        avoid: peers that led or ended ballots as no honest one does.
        rejected: peers whose contribution to this outer step is not accepted.
        unformed: why no roster can be formed.
        ranks: in which order peers lead.
        refusal: why this outer step can't be decided here at all.
    """

    slot: Slot
    promised: Ballot = NO_BALLOT
    seen: Ballot = NO_BALLOT
    accepted: tuple[Ballot, Entry] | None = None
    voted: dict[Digest, Entry] = field(default_factory=dict)
    sent: list[ContributionId] = field(default_factory=list)
    offer: Offer | None = None
    ready: Ready | None = None
    told: set[PeerId] = field(default_factory=set)
    callers: set[PeerId] = field(default_factory=set)
    called: set[PeerId] = field(default_factory=set)
    readies: dict[PeerId, Ready] = field(default_factory=dict)
    busy: set[PeerId] = field(default_factory=set)
    opened_s: float | None = None
    first_ready_s: float = 0.0
    under_way: UnderWay | None = None
    ended: Roster | None = None
    aborts: dict[PeerId, tuple[Reason, tuple[PeerId, ...]]] = field(default_factory=dict)
    votes: dict[Ballot, dict[PeerId, Vote]] = field(default_factory=dict)
    joined: dict[Ballot, dict[PeerId, Digest]] = field(default_factory=dict)
    edges: set[Edge] = field(default_factory=set)
    quits: dict[PeerId, int] = field(default_factory=dict)
    avoid: set[PeerId] = field(default_factory=set)
    rejected: set[PeerId] = field(default_factory=set)
    asked: set[PeerId] = field(default_factory=set)
    unformed: Reason | None = None
    refusal: Reason | None = None
    proposals: int = 0
    propose_from_s: float = 0.0
    ballots: int = 0
    ranks: dict[PeerId, str] = field(default_factory=dict)
    joined_s: float = 0.0
    accepted_s: float = 0.0

    @property
    def is_open(self) -> bool:
        """Whether anybody is known to be ready."""
        return bool(self.readies or self.callers)
