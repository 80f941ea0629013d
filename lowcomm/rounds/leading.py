"""What a leader proposes, and when: the roster of the next ballot, or why none can be formed."""

from __future__ import annotations

from lowcomm.ledger.certificate import Ballot, is_quorum
from lowcomm.rounds.decision import Decision
from lowcomm.rounds.patience import Patience
from lowcomm.rounds.policy import Rules
from lowcomm.rounds.proposal import Edge, absent_members, connected, edge, make_roster, ranks
from lowcomm.rounds.roster import Roster, leader_rank
from lowcomm.rounds.values import Ready, View
from lowcomm.types import PeerId, Reason

LEADER_PATIENCE = 1.5
"""A leader that is alive but silent is followed by the next one after so many deadlines."""


def aligned(decision: Decision, view: View, rules: Rules) -> set[PeerId]:
    """Live peers with this peer's head."""
    head = decision.slot.previous
    return {peer for peer, seen in view.live.items() if seen.head(rules.fragment) == head}


def edges_of(me: PeerId, decision: Decision, patience: Patience) -> set[Edge]:
    """Between whom data doesn't pass, by what all have said."""
    said = {
        edge(peer, other)
        for peer, ready in decision.readies.items()
        for other in ready.stalled
        if other != peer
    }
    own = {edge(me, peer) for peer in patience.stalled(decision.slot.outer_step)}
    return decision.edges | said | own


def contested_s(decision: Decision, now_s: float) -> float:
    """For how long somebody has been ready for this outer step."""
    return now_s - decision.opened_s if decision.opened_s is not None else 0.0


def _edges(
    me: PeerId, decision: Decision, view: View, patience: Patience
) -> tuple[set[Edge], dict[PeerId, str]]:
    """Between whom data doesn't pass, and the rank of each peer where that matters."""
    edges = edges_of(me, decision, patience)
    return edges, ranks([*view.live, me], decision.slot.previous) if edges else {}


def leaders(
    me: PeerId, decision: Decision, view: View, rules: Rules, patience: Patience, now_s: float
) -> list[PeerId]:
    """Who leads this outer step, the one whose turn it is first; each follows where the one before does
    nothing for so long.
    """
    here, rank = aligned(decision, view, rules), decision.ranks
    stalled = {p for p, seen in view.live.items() if seen.stalled and p not in decision.readies}
    edges, cuts = _edges(me, decision, view, patience)
    lead = connected({me, *here} - decision.avoid, edges, cuts) - stalled
    for peer in lead - rank.keys():
        rank[peer] = leader_rank(peer, rules.run_id, rules.fragment, decision.slot.outer_step)
    order = sorted(lead, key=rank.__getitem__)
    order += [] if me in lead else [me]  # whose data doesn't pass leaves the lead to those among whom it does
    waited_s = now_s - decision.first_ready_s if decision.is_open else 0.0
    turn = int(waited_s / (LEADER_PATIENCE * rules.policy.deadline_s)) % len(order)
    return order[turn:] + order[:turn]


def next_roster(
    me: PeerId, decision: Decision, view: View, rules: Rules, patience: Patience, now_s: float
) -> Roster | Reason | None:
    """What a leader proposes now: a roster, the reason why none can be formed, or None while there is time.

    Marks peers that missed the deadline.
    """
    deadline_s, waited_s = rules.policy.deadline_s, now_s - decision.first_ready_s
    here = aligned(decision, view, rules)
    stalled = {p for p, seen in view.live.items() if seen.stalled and p not in decision.readies}
    edges, rank = _edges(me, decision, view, patience)
    others = view.live.keys() - decision.avoid
    cut_off = others - connected({me, *others}, edges, rank)
    if decision.busy & (connected({me, *here} - decision.avoid, edges, rank) | {me}):
        return None
    ready = {
        peer: said
        for peer, said in decision.readies.items()
        if (said.previous, said.mandate) == (decision.slot.previous, decision.slot.goes_by)
        and (peer == me or peer in here)
        and peer not in decision.rejected
    }
    missing = ({me} | patience.waited_for(view)) - set(ready) - decision.avoid - cut_off
    late = waited_s >= deadline_s or (bool(missing) and missing <= stalled)
    if not ready or (missing and not late):
        return None
    patience.missed(missing - {me}, now_s)
    candidates = [connected(set(ready) - decision.avoid, edges, rank)]
    if waited_s >= deadline_s:
        candidates.append(set(ready))  # what has not passed may pass again
    for chosen in candidates:
        roster = _roster(me, decision, view, rules, patience, now_s, {p: ready[p] for p in sorted(chosen)})
        if roster is not None:
            return roster
    return _why_none(me, decision, view, rules, set(ready), len(here) + 1, waited_s) if late else None


def _roster(
    me: PeerId,
    decision: Decision,
    view: View,
    rules: Rules,
    patience: Patience,
    now_s: float,
    chosen: dict[PeerId, Ready],
) -> Roster | None:
    """The roster with these, if they are enough."""
    tardy = ({me} | patience.abstains(view)) - decision.readies.keys()
    absent = absent_members(chosen, tardy, decision.slot, view, rules, contested_s(decision, now_s))
    if absent is None or len(chosen) < rules.policy.min_participants:
        return None
    highest = max(decision.seen, *(said.promised for said in decision.readies.values()))
    return make_roster(rules, decision.slot, Ballot(highest.attempt + 1, me), chosen, absent)


def _why_none(
    me: PeerId,
    decision: Decision,
    view: View,
    rules: Rules,
    ready: set[PeerId],
    live: int,
    waited_s: float,
) -> Reason:
    policy, members = rules.policy, set(decision.slot.electorate)
    text = (
        f"{len(ready)} of {live} live islands were ready within {policy.deadline_s:g} s; needed "
        f"{policy.min_participants}"
    )
    if not is_quorum(ready, members, ()):
        text += f", and more than half of the {len(members)} that took part before"
        silent = sorted(peer for peer in members - ready if peer not in view.live and peer != me)
        if silent and not rules.majority:
            heard_s = min(view.unheard(peer) for peer in silent)
            text += (
                f" (or {', '.join(silent)} not heard for {rules.grace_s:g} s; "
                f"it is {min(heard_s, waited_s):.0f} s now)"
            )
        text += f", partition = {policy.partition}"
        if rules.majority and not is_quorum(members - set(silent), members, ()):
            text += (
                f"; most of those who may decide are away: {', '.join(silent)}. The run stands until more of "
                "them are back; if they are lost for good, `lowcomm recover` lets the others go on"
            )
    return Reason("few", text, tuple(sorted(members - ready)), waited_s)
