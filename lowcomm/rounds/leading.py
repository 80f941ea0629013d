"""What a leader proposes, and when: the roster of the next ballot, or why none can be formed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from lowcomm.algorithms.reduce_shares import reduce_shares
from lowcomm.ledger.ranges import stops_of
from lowcomm.rounds.decision import Context, Decision, Ready
from lowcomm.rounds.electorate import Electorate
from lowcomm.rounds.roster import NO_BALLOT, Ballot, Participant, Roster, leader_order
from lowcomm.types import PeerId

LEADER_PATIENCE = 1.5
"""A leader that is alive but silent is followed by the next one after so many deadlines."""


def next_roster(
    context: Context, fragment: int, decision: Decision, electorate: Electorate, now_s: float
) -> Roster | str | None:
    """The roster to propose now, the reason why none can be formed, or None while there is time.

    Marks peers that missed the deadline as absent.
    """
    me, policy, chain = context.exchange.peer_id, context.policy, context.state.chains[fragment]
    if context.peers.state.phase != "training" or not decision.readies or decision.task is not None:
        return None
    if electorate.ahead():
        return None  # first catch up; what others have committed is decided
    aligned, waiting = electorate.look()
    waited_s = now_s - decision.first_ready_s
    stalled = {peer.id for peer in context.peers.live() if peer.stalled and peer.id not in decision.readies}
    heeded = aligned - decision.avoid
    order = leader_order([*(heeded - stalled), me], context.exchange.run_id, fragment, decision.outer_step)
    turn = int(waited_s / (LEADER_PATIENCE * policy.deadline_s))
    if order[turn % len(order)] != me or decision.busy & (heeded | {me}):
        return None
    ready = {
        peer: said
        for peer, said in decision.readies.items()
        if said.previous == chain.head and (peer == me or peer in aligned) and peer not in decision.rejected
    }
    missing = ({me} | waiting) - set(ready) - decision.avoid
    late = waited_s >= policy.deadline_s or (bool(missing) and missing <= stalled)
    if not ready or (missing and not late):
        return None
    electorate.absent |= missing
    willing = {peer: said for peer, said in ready.items() if peer not in decision.avoid}
    if not electorate.may_commit(willing):
        willing = ready
    if electorate.may_commit(willing):
        return _roster(context, fragment, decision, willing)
    if not late:
        return None
    return (
        f"{len(willing)} of {len(aligned) + 1} live islands were ready within "
        f"{policy.deadline_s:g} s; needed {policy.min_participants}, partition = "
        f"{policy.partition}, {len(chain.last.participants) if chain.last else 0} took part before"
    )


def _roster(context: Context, fragment: int, decision: Decision, ready: dict[PeerId, Ready]) -> Roster:
    state = context.state
    accepted = [said.accepted for said in ready.values() if said.accepted is not None]
    newest = max(accepted, key=lambda pair: pair[0]) if accepted else None
    highest = max(decision.seen, *(said.promised for said in ready.values()))
    elements = state.fragments[fragment].elements
    return Roster(
        fragment=fragment,
        outer_step=decision.outer_step,
        ballot=Ballot(highest.attempt + 1, context.exchange.peer_id),
        previous=state.chains[fragment].head,
        participants=tuple(
            Participant(peer, said.tokens, said.norm, said.inner_step, said.speed)
            for peer, said in sorted(ready.items())
        ),
        stops=stops_of(elements, reduce_shares(bandwidths(ready)), context.codec.block_elements),
        chunk_elements=context.chunk_elements,
        entry=newest[1] if newest else None,
        accepted_in=newest[0] if newest else NO_BALLOT,
    )


def bandwidths(ready: Mapping[PeerId, Ready]) -> list[float]:
    """Each peer's bandwidth in bytes per second, ascending by peer id, from what all have received.

    A peer sends what the others receive from it, and receives what it says; the lower of both counts. Who
    has not been measured is taken for average.
    """
    found: dict[PeerId, float] = {}
    for peer in ready:
        sent = [said.rates[peer] for other, said in ready.items() if other != peer and peer in said.rates]
        received = [rate for other, rate in ready[peer].rates.items() if other != peer and other in ready]
        if sent:
            mean = min(statistics.fmean(way) for way in (sent, received) if way)
            found[peer] = mean * (len(ready) - 1)
    usual = statistics.fmean(found.values()) if found else 1.0
    return [found.get(peer, usual) for peer in sorted(ready)]
