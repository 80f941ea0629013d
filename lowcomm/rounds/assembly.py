"""Who is ready for the next outer step, who leads it, and whom its next ballot is formed with.

Whoever is due tells it to who leads, and to who would next. Who leads tells those that are not ready that
others are, waits for them until the deadline, and proposes; whom data doesn't reach, and who ends ballots as
no honest peer does, is left out.
"""

from __future__ import annotations

from collections.abc import Collection

from lowcomm.ledger.certificate import Ballot, is_quorum
from lowcomm.rounds.patience import Patience
from lowcomm.rounds.policy import Rules
from lowcomm.rounds.proposal import Edge, absent_members, connected, edge, make_roster, may_leave_out, ranks
from lowcomm.rounds.roster import Roster, leader_rank
from lowcomm.rounds.values import Ready, Slot, Tell, View
from lowcomm.types import Digest, PeerId, Reason

LEADER_PATIENCE = 1.5
"""A leader that is alive but silent is followed by the next one after so many deadlines."""
DEPUTIES = 1
"""So many that would lead next are told as much as the leader."""
QUICK_PROPOSALS, FIRST_PAUSE_S = 4, 0.1
"""A leader whose ballots of one outer step come to nothing so often proposes ever more slowly."""
MAX_QUITS = 3
"""Who ends so many ballots of one outer step and names nobody is left out."""


class Assembly:
    """What one peer knows of those who decide the next outer step of a fragment.

    Attributes:
        view: the swarm, handed in anew before each event.
        rates: at which data came from the electorate lately, as told with `ready`.
        following: whether others are ahead, so that this peer catches up before it leads.
        patience: what is remembered of others from one outer step to the next.
        readies: who is ready, in its newest words.
        opened_s: since when somebody has been ready; None = nobody has.
        first_ready_s: since when the next ballot is waited for.
        edges: between whom data did not pass, as this outer step has shown.
        avoid: peers that led or ended ballots as no honest one does.
        rejected: of these, who has a contribution to this outer step that is not accepted.
        unformed: why no roster can be formed.
    """

    def __init__(self, me: PeerId, rules: Rules, slot: Slot) -> None:
        self._me, self.rules = me, rules
        self.view = View({}, "starting", {}, {})
        self.rates = ""
        self.following = False
        self.patience = Patience(me)
        self._early: dict[PeerId, tuple[int, Ready]] = {}
        self._early_calls: dict[PeerId, tuple[int, Digest]] = {}
        self._clear(slot, {}, 0.0)

    def _clear(self, slot: Slot, readies: dict[PeerId, Ready], now_s: float) -> None:
        self.slot = slot
        self.readies = readies
        self.opened_s: float | None = None
        self.first_ready_s = now_s
        self.edges: set[Edge] = set()
        self.avoid: set[PeerId] = set()
        self.rejected: set[PeerId] = set()
        self.unformed: Reason | None = None
        self._ready: Ready | None = None  # this peer's own, until it gives up
        self._told: set[PeerId] = set()  # who has got that
        self._callers: set[PeerId] = (
            set()
        )  # who leads, as it finds itself, and has said that others are ready
        self._called: set[PeerId] = set()  # whom this peer, leading, has told that
        self._busy: set[PeerId] = set()  # whom a ballot holds, until they say that they are free
        self._quits: dict[PeerId, int] = {}
        self._ranks: dict[PeerId, str] = {}
        self._proposals, self._propose_from_s = 0, 0.0

    def begin(self, slot: Slot, now_s: float) -> None:
        """The chain has moved; who was ahead may have spoken of this outer step already."""
        same = self.slot.outer_step == slot.outer_step  # another head at this height; who shares it counts
        self._clear(slot, self.readies if same else {}, now_s)
        for peer, (outer_step, ready) in list(self._early.items()):
            if outer_step <= slot.outer_step:
                del self._early[peer]
            if outer_step == slot.outer_step:
                self.readies[peer] = ready
        for peer, (outer_step, head) in list(self._early_calls.items()):
            if outer_step <= slot.outer_step:
                del self._early_calls[peer]
            if (outer_step, head) == (slot.outer_step, slot.previous):
                self._callers.add(peer)
        self.opened_s = now_s if self.is_open else None

    def go_by_mandate(self, now_s: float) -> None:
        """Others decide this outer step now, in ballots of their own."""
        self.first_ready_s = now_s
        self._busy.clear()
        self.unformed = None

    # -- who is ready --------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether anybody is known to be ready."""
        return bool(self.readies or self._callers)

    def contested_s(self, now_s: float) -> float:
        """For how long somebody has been ready for this outer step."""
        return now_s - self.opened_s if self.opened_s is not None else 0.0

    def take_ready(self, peer: PeerId, outer_step: int, ready: Ready, now_s: float) -> bool:
        """A peer is due; whether that counts now. It may have committed what this peer has not."""
        if outer_step == self.slot.outer_step + 1:
            self._early[peer] = outer_step, ready
        if outer_step != self.slot.outer_step:
            return False
        if peer == self._me:
            self._ready = ready
            self._told.clear()
        self._open(now_s)
        self.readies[peer] = ready
        self._busy.discard(peer)
        self.patience.ready(peer)
        return True

    def take_call(self, peer: PeerId, outer_step: int, previous: Digest, now_s: float) -> bool:
        """Somebody who leads an outer step says that others are ready for it; whether it is this one."""
        if outer_step == self.slot.outer_step + 1:
            self._early_calls[peer] = outer_step, previous
        if (outer_step, previous) != (self.slot.outer_step, self.slot.previous):
            return False
        self._open(now_s)
        self._callers.add(peer)
        return True

    def _open(self, now_s: float) -> None:
        if not self.is_open:
            self.first_ready_s = now_s
        if self.opened_s is None:
            self.opened_s = now_s

    def take_unready(self, peer: PeerId, outer_step: int, *, answers: bool) -> None:
        """A peer has given up on a round."""
        if answers and peer in self.aligned():  # who is behind, and can't catch up, means well
            self.patience.will_answer(peer, self.slot.outer_step)
        if outer_step == self.slot.outer_step:
            self.readies.pop(peer, None)
            self._busy.discard(peer)
        elif peer in self._early and self._early[peer][0] == outer_step:
            del self._early[peer]

    def take_unformed(self, peer: PeerId, outer_step: int, text: str, now_s: float, *, idle: bool) -> None:
        """A leader found too few participants; believed where this peer has waited as long itself.

        Args:
            idle: this peer is in no ballot.
        """
        self._callers.discard(peer)
        waited_s = now_s - self.first_ready_s
        late = waited_s >= 0.8 * self.rules.policy.deadline_s
        if outer_step == self.slot.outer_step and idle and late:
            self.unformed = Reason("few", text, (peer,), waited_s)

    def withdraw(self, now_s: float) -> list[PeerId]:
        """This peer is ready no more; who should know."""
        self.readies.pop(self._me, None)
        hear = self._in_charge(self._leaders(now_s)) | self._told
        self._ready = None
        return sorted(hear & self.view.live.keys())

    def peer_down(self, peer: PeerId) -> None:
        """A link broke; whoever was there is not ready any more."""
        self.readies.pop(peer, None)
        for known in (self._told, self._callers, self._called, self._busy):
            known.discard(peer)
        self._early.pop(peer, None)
        self._early_calls.pop(peer, None)

    def hold(self, roster: Roster) -> None:
        """A ballot holds its participants: what they have said before is stale."""
        for peer in roster.peers:
            said = self.readies.get(peer)
            if said is not None and said.promised < roster.ballot:
                del self.readies[peer]  # who leaves the ballot says so anew
        self._busy = set(roster.peers) - self.readies.keys()

    # -- who is left out -----------------------------------------------------------------------------

    def note_stalls(self, peers: Collection[PeerId]) -> None:
        """Data of these, or their vote, does not come."""
        self.edges |= self.patience.note_stalls(peers, self.slot.outer_step)

    def note_quit(self, peer: PeerId) -> None:
        """A peer has ended a ballot without naming anybody."""
        self._quits[peer] = self._quits.get(peer, 0) + 1
        if self._quits[peer] >= MAX_QUITS:
            self.avoid.add(peer)

    def reject(self, peer: PeerId) -> None:
        """A peer's contribution to this outer step is not accepted, as seen here or reported by others."""
        self.avoid.add(peer)
        self.rejected.add(peer)

    def aligned(self) -> set[PeerId]:
        """Live peers with this peer's head."""
        return self.view.at(self.rules.fragment, self.slot.previous)

    def tardy(self) -> list[tuple[PeerId, float]]:
        """Who is live and missed a deadline, and when; whoever answers a later heartbeat abstains."""
        if self.rules.majority or not self.is_open:
            return []
        return [(peer, at_s) for peer, at_s in self.patience.tardy.items() if peer in self.view.live]

    def may_be_formed(self) -> bool:
        """Whether others are ready for the next outer step, and enough of them are live."""
        ready = any(said.previous == self.slot.previous for said in self.readies.values())
        if not ready and not self._callers:
            return False
        there, tardy = {self._me, *self.aligned()}, self.patience.abstains(self.view)
        return absent_members(there, tardy, self.slot, self.view, self.rules, 0.0) is not None

    def agrees(self, roster: Roster, now_s: float) -> bool:
        """Whether a roster has enough participants, and leaves out none that may not be."""
        absent, slot, rules = roster.absent, self.slot, self.rules
        return (
            len(roster.peers) >= rules.policy.min_participants
            and is_quorum(roster.peers, slot.electorate, absent)
            and may_leave_out(absent, self.readies, slot, self.view, rules, self.contested_s(now_s))
        )

    # -- who leads, and what it proposes -------------------------------------------------------------

    def _cuts(self) -> tuple[set[Edge], dict[PeerId, str]]:
        """Between whom data doesn't pass, by what all have said, and the rank of each where that matters."""
        said = {edge(peer, o) for peer, ready in self.readies.items() for o in ready.stalled if o != peer}
        own = {edge(self._me, peer) for peer in self.patience.stalled(self.slot.outer_step)}
        edges = self.edges | said | own
        return edges, ranks([*self.view.live, self._me], self.slot.previous) if edges else {}

    def _stalled(self) -> set[PeerId]:
        return {p for p, seen in self.view.live.items() if seen.stalled and p not in self.readies}

    def _leaders(self, now_s: float) -> list[PeerId]:
        """Who leads this outer step, the one whose turn it is first; each follows where the one before does
        nothing for so long.
        """
        me, rules, rank = self._me, self.rules, self._ranks
        lead = connected({me, *self.aligned()} - self.avoid, *self._cuts()) - self._stalled()
        for peer in lead - rank.keys():
            rank[peer] = leader_rank(peer, rules.run_id, rules.fragment, self.slot.outer_step)
        order = sorted(lead, key=rank.__getitem__)
        order += [] if me in lead else [me]  # whose data does not pass leaves the lead to the others
        waited_s = now_s - self.first_ready_s if self.is_open else 0.0
        turn = int(waited_s / (LEADER_PATIENCE * rules.policy.deadline_s)) % len(order)
        return order[turn:] + order[:turn]

    def _in_charge(self, order: list[PeerId]) -> set[PeerId]:
        """Whom it is told that this peer is ready: who leads, or would next, or says that it does."""
        return {*order[: 1 + DEPUTIES], *self._callers}

    def lead(self, now_s: float) -> tuple[list[Tell], bool]:
        """What has to be told, and whether this peer is to propose a roster now.

        Those in charge hear that it is ready; if it leads, those that are not ready hear that others are,
        newcomers too.
        """
        order, view, told = self._leaders(now_s), self.view, list[Tell]()
        trains = view.training
        untold = (self._in_charge(order) & trains) - self._told
        if self._ready is not None and untold:
            self._told |= untold
            told.append(Tell(tuple(sorted(untold)), "ready", self._ready.to_json()))
        if order[0] != self._me or view.phase != "training" or self.following:
            return told, False
        if uncalled := trains - self._called - self.readies.keys():
            self._called |= uncalled
            self.patience.called(uncalled, now_s)
            told.append(Tell(tuple(sorted(uncalled)), "opened", {"previous": self.slot.previous}))
        return told, now_s >= self._propose_from_s and bool(self.readies)

    def next_roster(self, seen: Ballot, now_s: float) -> Roster | Reason | None:
        """What a leader proposes now: a roster, why none can be formed, or None while there is time.

        Marks peers that missed the deadline.

        Args:
            seen: the highest ballot of this outer step.
        """
        slot, me = self.slot, self._me
        deadline_s, waited_s = self.rules.policy.deadline_s, now_s - self.first_ready_s
        here, others, cuts = self.aligned(), self.view.live.keys() - self.avoid, self._cuts()
        cut_off = others - connected({me, *others}, *cuts)
        if self._busy & (connected({me, *here} - self.avoid, *cuts) | {me}):
            return None
        ready = {
            peer: said
            for peer, said in self.readies.items()
            if (said.previous, said.mandate) == (slot.previous, slot.goes_by)
            and (peer == me or peer in here)
            and peer not in self.rejected
        }
        missing = ({me} | self.patience.waited_for(self.view)) - set(ready) - self.avoid - cut_off
        late = waited_s >= deadline_s or (bool(missing) and missing <= self._stalled())
        if not ready or (missing and not late):
            return None
        self.patience.missed(missing - {me}, now_s)
        candidates = [connected(set(ready) - self.avoid, *cuts)]
        if waited_s >= deadline_s:
            candidates.append(set(ready))  # what has not passed may pass again
        for chosen in candidates:
            roster = self._roster({peer: ready[peer] for peer in sorted(chosen)}, seen, now_s)
            if roster is not None:
                return roster
        return self._why_none(set(ready), len(here) + 1, waited_s) if late else None

    def _roster(self, chosen: dict[PeerId, Ready], seen: Ballot, now_s: float) -> Roster | None:
        """The roster with these, if they are enough."""
        tardy = ({self._me} | self.patience.abstains(self.view)) - self.readies.keys()
        contested_s = self.contested_s(now_s)
        absent = absent_members(chosen, tardy, self.slot, self.view, self.rules, contested_s)
        if absent is None or len(chosen) < self.rules.policy.min_participants:
            return None
        highest = max(seen, *(said.promised for said in self.readies.values()))
        return make_roster(self.rules, self.slot, Ballot(highest.attempt + 1, self._me), chosen, absent)

    def proposed(self, now_s: float) -> None:
        """A roster goes out; where many have come to nothing, the next one has to wait."""
        self._proposals += 1
        more = self._proposals - QUICK_PROPOSALS
        longest_s = self.rules.policy.deadline_s / 2
        pause_s = min(longest_s, FIRST_PAUSE_S * 2.0 ** min(more, 16)) if more >= 0 else 0.0
        self._propose_from_s = now_s + pause_s

    def not_formed(self, why: Reason) -> None:
        """This peer leads, and finds too few: who is still due says so anew."""
        self.unformed = why
        for known in (self.readies, self._callers, self._called):
            known.clear()

    def _why_none(self, ready: set[PeerId], live: int, waited_s: float) -> Reason:
        rules, view, members = self.rules, self.view, set(self.slot.electorate)
        policy = rules.policy
        text = (
            f"{len(ready)} of {live} live islands were ready within {policy.deadline_s:g} s; needed "
            f"{policy.min_participants}"
        )
        if not is_quorum(ready, members, ()):
            text += f", and more than half of the {len(members)} that took part before"
            silent = sorted(peer for peer in members - ready if peer not in view.live and peer != self._me)
            if silent and not rules.majority:
                heard_s = min(view.unheard(peer) for peer in silent)
                text += (
                    f" (or {', '.join(silent)} not heard for {rules.grace_s:g} s; "
                    f"it is {min(heard_s, waited_s):.0f} s now)"
                )
            text += f", partition = {policy.partition}"
            if rules.majority and not is_quorum(members - set(silent), members, ()):
                text += (
                    f"; most of those who may decide are away: {', '.join(silent)}. The run stands until "
                    "more are back; if they are lost for good, `lowcomm recover` lets the others go on"
                )
        return Reason("few", text, tuple(sorted(members - ready)), waited_s)
