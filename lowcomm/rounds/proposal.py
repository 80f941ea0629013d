"""Whom the next ballot is formed with: who is ready, to whom data passes, and who is left out as absent.

Pure functions of what a leader knows; see "Quorum", "Two modes" and "Votes that don't come" in
docs/design/0019-rounds.md.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from lowcomm.algorithms.reduce_shares import reduce_shares
from lowcomm.ledger.certificate import NO_BALLOT, Ballot, is_quorum
from lowcomm.ledger.entry import hash_value
from lowcomm.ledger.ranges import stops_of
from lowcomm.rounds.policy import Rules
from lowcomm.rounds.rates import parse_rates
from lowcomm.rounds.roster import Participant, Roster
from lowcomm.rounds.values import Ready, Slot, View
from lowcomm.types import Digest, PeerId

Edge = frozenset[PeerId]
"""Two peers between which data doesn't pass."""


def edge(one: PeerId, other: PeerId) -> Edge:
    """Between two peers."""
    return frozenset((one, other))


def connected(peers: Iterable[PeerId], edges: Collection[Edge], rank: Mapping[PeerId, str]) -> set[PeerId]:
    """A large set of these peers with no edge in it.

    Whoever has most edges goes first (a greedy vertex cover), so a peer that data doesn't reach, or that
    accuses all others, goes alone; of equals the one with the greatest rank.
    """
    left = set(peers)
    while True:
        found = Counter(peer for pair in edges if pair <= left for peer in pair)
        if not found:
            return left
        left.discard(max(found, key=lambda peer: (found[peer], rank.get(peer, ""))))


def ranks(peers: Iterable[PeerId], head: Digest) -> dict[PeerId, str]:
    """An order of peers that nobody can choose; the least is the distinguished one."""
    return {peer: hash_value([head, peer]) for peer in peers}


def absent_members(
    voters: Collection[PeerId],
    tardy: Collection[PeerId],
    slot: Slot,
    view: View,
    rules: Rules,
    contested_s: float,
) -> tuple[PeerId, ...] | None:
    """Who has to be left out of the electorate for these peers to be a quorum; None where they can't be one.

    Args:
        tardy: who is heard, and has not been ready within a deadline.
        contested_s: for how long somebody has been ready for this outer step.
    """
    members = set(slot.electorate)
    if is_quorum(voters, members, ()):
        return ()
    missing = members - set(voters)
    if rules.majority:
        left_out = sorted(peer for peer in missing if has_left(peer, slot, view, rules))[:1]
        return tuple(left_out) if is_quorum(voters, members, left_out) else None
    gone = [peer for peer in missing if peer in tardy or is_absent(peer, view, rules)]
    patience_s = rules.grace_s + rules.policy.deadline_s
    if is_quorum(voters, members, gone):
        # members that are slow, not gone, would decide the same outer step by themselves, and those stand
        slow = bool(members) and members == set(gone) and not all(is_absent(p, view, rules) for p in gone)
        return None if slow and contested_s < patience_s else tuple(sorted(gone))
    left = members - set(gone)
    half = 2 * len(left & set(voters)) == len(left)
    distinguished = min(left, key=lambda peer: hash_value([slot.previous, peer]))
    if contested_s >= patience_s and half and distinguished in voters:
        return tuple(sorted(missing))
    if contested_s >= patience_s + rules.policy.deadline_s:
        return tuple(sorted(missing))
    return None


def has_left(peer: PeerId, slot: Slot, view: View, rules: Rules) -> bool:
    """Whether a member has said goodbye, and knew of no more than is known here."""
    goodbye = view.goodbyes.get(peer)
    if goodbye is None or rules.fragment >= len(goodbye.outer_steps):
        return False
    return slot.outer_step - 2 <= goodbye.outer_steps[rules.fragment] < slot.outer_step


def is_absent(peer: PeerId, view: View, rules: Rules) -> bool:
    """Whether a member has left, or has not been heard for a grace."""
    return peer in view.goodbyes or view.unheard(peer) >= rules.grace_s


def may_leave_out(
    absent: Collection[PeerId],
    ready: Collection[PeerId],
    slot: Slot,
    view: View,
    rules: Rules,
    contested_s: float,
) -> bool:
    """Whether a participant finds, too, that these may be left out; it may have looked a moment later.

    With `continue` also who is heard and not ready, or where nothing has been decided for a grace.

    Args:
        ready: who has said that it is ready.
    """
    if rules.majority:
        return len(absent) < 2 and all(has_left(peer, slot, view, rules) for peer in absent)
    if contested_s >= rules.grace_s:
        return True
    return all(
        peer in view.goodbyes
        or view.unheard(peer) >= rules.grace_s / 2
        or (peer in view.live and peer not in ready)
        for peer in absent
    )


def make_roster(
    rules: Rules, slot: Slot, ballot: Ballot, chosen: Mapping[PeerId, Ready], absent: tuple[PeerId, ...]
) -> Roster:
    """The roster of a ballot among those who are ready.

    It finishes the update that was accepted in the newest ballot, if one of them has accepted any.
    """
    accepted = [said.accepted for said in chosen.values() if said.accepted is not None]
    newest = max(accepted, key=lambda pair: pair[0]) if accepted else None
    holders = sorted(
        peer
        for peer, said in chosen.items()
        if newest and said.accepted and said.accepted[1].hash == newest[1].hash
    )
    return Roster(
        fragment=rules.fragment,
        outer_step=slot.outer_step,
        ballot=ballot,
        previous=slot.previous,
        participants=tuple(
            Participant(
                peer,
                said.offer.tokens,
                said.offer.norm,
                said.offer.inner_step,
                said.offer.speed,
                said.offer.id.start,
                said.offer.id.sum,
                said.offer.samples,
            )
            for peer, said in sorted(chosen.items())
        ),
        stops=stops_of(rules.elements, reduce_shares(bandwidths(chosen, slot)), rules.block_elements),
        chunk_elements=rules.chunk_elements,
        entry=newest[1] if newest else None,
        accepted_in=newest[0] if newest else NO_BALLOT,
        holders=tuple(holders),
        absent=absent,
        mandate=slot.goes_by,
    )


def bandwidths(ready: Mapping[PeerId, Ready], slot: Slot) -> list[float]:
    """Each peer's bandwidth in bytes per second, ascending by peer id, from what all have received.

    A peer sends what the others receive from it, and receives what it says; the lower of both counts. Who
    has not been measured is taken for average.
    """
    found: dict[PeerId, float] = {}
    rates = {peer: parse_rates(said.rates, slot.electorate) for peer, said in ready.items()}
    for peer in ready if any(rates.values()) else ():
        sent = [told[peer] for other, told in rates.items() if other != peer and peer in told]
        received = [rate for other, rate in rates[peer].items() if other != peer and other in ready]
        if sent:
            mean = min(statistics.fmean(way) for way in (sent, received) if way)
            found[peer] = mean * (len(ready) - 1)
    usual = statistics.fmean(found.values()) if found else 1.0
    return [found.get(peer, usual) for peer in sorted(ready)]
