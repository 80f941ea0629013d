"""Who has joined which ballot of an outer step and who votes for what in it, and what of that is enough."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from lowcomm.ledger.certificate import Ballot, is_quorum
from lowcomm.ledger.entry import Entry
from lowcomm.rounds.roster import Roster
from lowcomm.rounds.values import Vote
from lowcomm.types import Digest, PeerId

T = TypeVar("T")

MAX_BALLOTS = 64
"""Of which anything is known here; those above an honest one are few."""


@dataclass(frozen=True, slots=True)
class Count:
    """The votes of one ballot, beside the entry that this peer holds.

    Attributes:
        votes: those that count, of participants.
        agreeing, differing: who votes for that entry, and who for another one, or another state.
        silent: participants without a vote.
        enough: whether those who agree are a quorum.
    """

    votes: Mapping[PeerId, Vote]
    agreeing: list[PeerId]
    differing: list[PeerId]
    silent: list[PeerId]
    enough: bool


class Tally:
    """Joins and votes as they come in, in any order; a ballot's roster may come later."""

    def __init__(self) -> None:
        self._votes: dict[Ballot, dict[PeerId, Vote]] = {}
        self._joined: dict[Ballot, dict[PeerId, Digest]] = {}

    def clear(self) -> None:
        """Nothing that was said counts any more."""
        self._votes.clear()
        self._joined.clear()

    def note_vote(self, peer: PeerId, ballot: Ballot, vote: Vote) -> None:
        """A peer votes, so it has joined; its first vote counts."""
        _note(self._votes, peer, ballot, vote)
        self.note_joined(peer, ballot, vote.entry)

    def note_joined(self, peer: PeerId, ballot: Ballot, entry: Digest) -> None:
        """A peer has joined a ballot that finishes an update, if it is this one."""
        _note(self._joined, peer, ballot, entry)

    def joined(self, roster: Roster) -> list[PeerId]:
        """Who has said that it has joined this ballot, which finishes an update."""
        said = self._joined.get(roster.ballot, {})
        return [peer for peer in roster.peers if roster.entry and said.get(peer) == roster.entry.hash]

    def count(self, roster: Roster, entry: Entry | None, electorate: Collection[PeerId]) -> Count:
        """The votes of a ballot."""
        said = self._votes.get(roster.ballot, {})
        own = (entry.hash, entry.state_digest) if entry else None
        votes = {peer: said[peer] for peer in roster.peers if peer in said and said[peer].is_for(roster)}
        agreeing = [peer for peer, vote in votes.items() if (vote.entry, vote.state) == own]
        return Count(
            votes=votes,
            agreeing=agreeing,
            differing=[peer for peer in votes if peer not in agreeing],
            silent=[peer for peer in roster.peers if peer not in votes],
            enough=is_quorum(agreeing, electorate, roster.absent),
        )

    def may_be_decided(
        self, roster: Roster, lost: Collection[PeerId], electorate: Collection[PeerId]
    ) -> bool:
        """Whether votes may still come that decide a ballot, although those of some can't come any more."""
        said = self._votes.get(roster.ballot, {})
        to_come = [peer for peer in roster.peers if peer not in lost or peer in said]
        return any(peer not in said for peer in to_come) and is_quorum(to_come, electorate, roster.absent)

    def of_ballots_from(self, least: Ballot) -> tuple[dict[Ballot, object], ...]:
        """What was said of this ballot and newer ones."""
        said: tuple[Mapping[Ballot, object], ...] = (self._votes, self._joined)
        return tuple({ballot: one[ballot] for ballot in one if ballot >= least} for one in said)


def _note(said: dict[Ballot, dict[PeerId, T]], peer: PeerId, ballot: Ballot, what: T) -> None:
    said.setdefault(ballot, {}).setdefault(peer, what)
    while len(said) > MAX_BALLOTS:
        del said[min(said)]
