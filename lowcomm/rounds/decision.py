"""What one peer has promised and accepted of the outer step that is decided next."""

from __future__ import annotations

from dataclasses import dataclass, field

from lowcomm.ledger.certificate import NO_BALLOT, Ballot, is_quorum
from lowcomm.ledger.entry import ContributionId, Entry
from lowcomm.rounds.roster import Roster
from lowcomm.rounds.tally import Count, Tally
from lowcomm.rounds.values import Offer, Record, Slot
from lowcomm.types import Digest, PeerId, Reason

MAX_UPDATES = 2
"""Each that was voted for holds an outer state."""


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
    """What this peer has promised about one slot, and what it knows of its ballots.

    Attributes:
        promised: the highest ballot that it has joined.
        seen: the highest ballot that any roster or refusal had.
        accepted: the update that it has voted for, and in which ballot.
        voted: the newest entries that it has ever voted for; others may have committed one although this peer
            has seen a vote that differs.
        sent: contributions that others may hold, each once, oldest first.
        ended: the ballot that has failed here last.
        aborts: what participants have said of the ballot promised last, whose roster has not come here.
        asked: whom it has asked for the certificate of what was voted for.
        refusal: why this outer step can't be decided here at all.
    """

    slot: Slot
    offer: Offer | None = None
    promised: Ballot = NO_BALLOT
    seen: Ballot = NO_BALLOT
    accepted: tuple[Ballot, Entry] | None = None
    voted: dict[Digest, Entry] = field(default_factory=dict)
    sent: list[ContributionId] = field(default_factory=list)
    under_way: UnderWay | None = None
    ended: Roster | None = None
    aborts: dict[PeerId, tuple[Reason, tuple[PeerId, ...]]] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    asked: set[PeerId] = field(default_factory=set)
    refusal: Reason | None = None
    ballots: int = 0
    joined_s: float = 0.0
    accepted_s: float = 0.0

    def record(self, fragment: int) -> Record:
        """What has to be on disk before anything that depends on it leaves."""
        return Record(
            fragment=fragment,
            outer_step=self.slot.outer_step,
            previous=self.slot.previous,
            promised=self.promised,
            peers=self.under_way.roster.peers if self.under_way else (),
            accepted=self.accepted,
        )

    def stand_by(self, record: Record) -> None:
        """What was promised in an earlier life binds still."""
        self.promised = self.seen = record.promised
        self.accepted = record.accepted
        if record.accepted is not None:
            self.voted[record.accepted[1].hash] = record.accepted[1]

    def hold(self, entry: Entry) -> None:
        """The update of an entry is here, to be voted for."""
        self.voted.pop(entry.hash, None)
        self.voted[entry.hash] = entry
        while len(self.voted) > MAX_UPDATES:
            del self.voted[next(iter(self.voted))]

    def ballot(self, outer_step: int, ballot: Ballot) -> UnderWay | None:
        """The ballot under way, if it is this one."""
        under = self.under_way
        here = under is not None and (outer_step, ballot) == (self.slot.outer_step, under.roster.ballot)
        return under if here else None

    def is_joined(self, roster: Roster) -> bool:
        """Whether a quorum is known to have joined a ballot, so that none below it can be decided otherwise.

        Whose data is in an update has joined; where one is finished, those who have joined say so.
        """
        quorum = is_quorum(self.tally.joined(roster), self.slot.electorate, roster.absent)
        return roster.entry is None or quorum

    def count(self, under: UnderWay) -> Count:
        """The votes of the ballot under way."""
        return self.tally.count(under.roster, under.entry, self.slot.electorate)

    def may_be_decided(self, under: UnderWay) -> bool:
        """Whether votes may still come that decide a ballot in which this peer has voted."""
        pending = self.tally.may_be_decided(under.roster, under.lost, self.slot.electorate)
        return under.voted and pending
