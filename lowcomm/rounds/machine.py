"""One fragment's rounds on one peer, without I/O: events and the time in, actions out.

This is docs/design/0019-rounds.md as code. Nothing in here waits, sends, reads a clock or calls back: a
driver (`lowcomm.rounds.round`) hands in what has happened, and does what `take_actions` gives, in order. So
it can be run under all orders of events, and is (`lowcomm.sim.checker`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from lowcomm.errors import ProtocolError
from lowcomm.ledger.certificate import Ballot, Certificate
from lowcomm.ledger.entry import ContributionId, Entry
from lowcomm.rounds.assembly import Assembly
from lowcomm.rounds.claims import ClaimJudge
from lowcomm.rounds.decision import Decision, UnderWay
from lowcomm.rounds.policy import Rules
from lowcomm.rounds.proposal import edge
from lowcomm.rounds.roster import MAX_LEAP, Participant, Roster
from lowcomm.rounds.tally import Count
from lowcomm.rounds.values import (
    Action,
    AskForCertificate,
    CastVote,
    Commit,
    Drop,
    Ended,
    Finish,
    Forget,
    Keep,
    Offer,
    Propose,
    Ready,
    Record,
    Reduce,
    Reject,
    Slot,
    Tell,
    TellDecided,
    Vote,
)
from lowcomm.types import BallotEnd, Digest, Json, PeerId, Reason

REDUCER_PATIENCE = 1.5
"""Who lacks only means waits so many times as long: the reducer may lack parts, and knows whose."""
MAX_SENT = 2
"""Contributions to one outer step whose fate is open; each is as large as the fragment."""


class RoundMachine:
    """The rounds of one fragment.

    Args:
        me: this peer.
        judge: of what contributions may claim.

    Attributes:
        decision: what is promised and accepted of the next outer step.
        assembly: who is ready for it, and whom its ballots are formed with.
    """

    def __init__(self, me: PeerId, rules: Rules, slot: Slot, judge: ClaimJudge) -> None:
        self.me, self.rules, self.judge = me, rules, judge
        self.decision = Decision(slot)
        self.assembly = Assembly(me, rules, slot)
        self._recalled: Record | None = None
        self._held_since_s = 0.0
        self._actions: list[Action] = []

    def take_actions(self) -> list[Action]:
        """What is to be done now, in order."""
        taken, self._actions = self._actions, []
        return taken

    # -- what the island does ------------------------------------------------------------------------

    def contribute(self, offer: Offer, now_s: float) -> None:
        """This peer is due: announce its contribution, or one that others may still commit."""
        decision = self.decision
        decision.offer = replace(offer, id=self.goes_as(offer.id))
        decision.refusal = self.assembly.unformed = None
        self._held_since_s = now_s
        if not self._held(now_s):
            self._announce(now_s)

    def goes_as(self, contribution: ContributionId) -> ContributionId:
        """What is announced where this peer is due with a contribution: that one, or one before it."""
        sent = self.decision.sent
        return sent[-1] if len(sent) >= MAX_SENT and contribution not in sent else contribution

    def abandon(self, now_s: float, *, answers: bool) -> None:
        """Give up on this round, and say so. Training goes on; promises and an accepted update stay.

        Args:
            answers: this peer will be ready as soon as others are, so it is worth waiting for.
        """
        self.decision.offer = None
        self._drop()
        self._tell(self.assembly.withdraw(now_s), "unready", {"answers": int(answers)})

    def begin(self, slot: Slot, now_s: float) -> None:
        """The chain has moved, by a commit or by other means: decide what follows it."""
        before = self.decision
        if (before.slot.outer_step, before.slot.previous) == (slot.outer_step, slot.previous):
            is_mandated = before.slot.goes_by != slot.goes_by
            before.slot = self.assembly.slot = slot  # its promises bind still
            if is_mandated:
                self._go_by_mandate(now_s)
            return
        self._drop()
        self.decision = Decision(slot, before.offer)
        self.assembly.begin(slot, now_s)
        self._be_bound()

    def _go_by_mandate(self, now_s: float) -> None:
        """Others decide this outer step now, in ballots of their own; what was accepted binds still."""
        self.decision.tally.clear()
        self.decision.refusal = None
        self.assembly.go_by_mandate(now_s)
        if self.decision.under_way is not None:
            self._fail(Reason("superseded", "an operator's mandate took its place"), now_s)
        else:
            self._announce(now_s)

    def committed(self, entry: Entry, participants: Collection[Participant], *, mine: bool) -> None:
        """An entry is applied; the next slot begins with `begin`.

        Args:
            mine: this peer's contribution is in it.
        """
        patience = self.assembly.patience
        patience.committed = True
        for peer, _ in entry.participants:
            patience.will_answer(peer, entry.outer_step)  # it was ready, as only the leader has heard
        self.judge.committed(entry, tuple(participants), self.assembly.opened_s)
        if mine:
            self.decision.offer = None  # what is left of it is announced anew

    def recall(self, record: Record) -> None:
        """What an earlier life of this peer has promised; it binds as soon as that step is reached."""
        self._recalled = record
        self._be_bound()

    def halt(self) -> None:
        """This peer takes no part any more."""
        self.decision.offer = None
        self._drop()

    # -- the swarm -----------------------------------------------------------------------------------

    def look(self, now_s: float) -> None:
        """The swarm has changed, or time has passed: perhaps a ballot can be formed now, or has to end."""
        decision = self.decision
        for peer, seen in self.assembly.view.live.items() if decision.voted else ():
            head = seen.head(self.rules.fragment)
            if head in decision.voted and peer not in decision.asked:
                decision.asked.add(peer)
                self._do(AskForCertificate(peer))
        if self._recalled is not None and decision.offer is not None and not self._held(now_s):
            self._announce(now_s)  # what held it back is void, or has been caught up with
        self._lead(now_s)

    def peer_down(self, peer: PeerId, reason: str, now_s: float) -> None:
        """A link broke: whoever was there is not ready any more, and the ballot with it is over."""
        self.assembly.peer_down(peer)
        self.decision.asked.discard(peer)
        self._lost(peer, Reason("gone", f"{peer} is gone ({reason})", (peer,)), now_s)

    def peer_silent(self, peer: PeerId, reason: str, now_s: float) -> None:
        """A peer says nothing any more: the ballot with it is over. What it has announced stays."""
        self._lost(peer, Reason("silent", f"{peer} is {reason}", (peer,)), now_s)

    def _lost(self, peer: PeerId, reason: Reason, now_s: float) -> None:
        under = self.decision.under_way
        if under is None or peer not in under.roster.peers:
            return
        under.lost.add(peer)
        if under.voted and not self._gathers(under):
            if peer != under.roster.ballot.leader:
                return  # whether it can do without is the leader's to decide
            self._spread(under, now_s)
        if not self._count_votes(now_s) and not self.decision.may_be_decided(under):
            self._fail(reason, now_s)

    # -- messages ------------------------------------------------------------------------------------

    def on_ready(self, peer: PeerId, outer_step: int, ready: Ready, now_s: float) -> None:
        """A peer is due.

        Raises:
            ProtocolError: its ballot is out of reach.
        """
        self._check_leap(peer, outer_step, ready.promised)
        if self.assembly.take_ready(peer, outer_step, ready, now_s):
            self._lead(now_s)

    def on_opened(self, peer: PeerId, outer_step: int, previous: Digest, now_s: float) -> None:
        """Somebody who leads an outer step says that others are ready for it; who is as well tells it.

        So whoever has answered a heartbeat that was sent after that, and is not known to be ready, is not.
        """
        if self.assembly.take_call(peer, outer_step, previous, now_s):
            self._lead(now_s)

    def on_unready(self, peer: PeerId, outer_step: int, *, answers: bool) -> None:
        """A peer has given up on a round."""
        self.assembly.take_unready(peer, outer_step, answers=answers)

    def on_unformed(self, peer: PeerId, outer_step: int, text: str, now_s: float) -> None:
        """A leader found too few participants."""
        idle = self.decision.under_way is None
        self.assembly.take_unformed(peer, outer_step, text, now_s, idle=idle)

    def on_roster(self, roster: Roster, now_s: float) -> None:
        """A leader's proposal, its signature checked: join it if no promise forbids.

        Raises:
            ProtocolError: its ballot is out of reach.
        """
        leader = PeerId(roster.ballot.leader)
        self._check_leap(leader, roster.outer_step, roster.ballot)
        slot, assembly = self.decision.slot, self.assembly
        if roster.outer_step != slot.outer_step or roster.previous != slot.previous:
            return
        if roster.mandate != slot.goes_by:
            self._decline(
                roster, "it goes by another mandate of the operator than this ballot, or by none", now_s
            )
            return
        if leader in assembly.rejected:
            text = "the contribution of its leader was not accepted"
            self._decline(roster, text, now_s, liar=leader)  # or it would lead those who have not heard so
            return
        if not assembly.agrees(roster, now_s):
            left = f", with {', '.join(roster.absent)} left out" if roster.absent else ""
            assembly.avoid.add(leader)
            self._decline(roster, f"{len(roster.peers)} are too few to commit, as it counts{left}", now_s)
            return
        self._join(roster, now_s)

    def on_abort(
        self,
        peer: PeerId,
        outer_step: int,
        ballot: Ballot,
        reason: Reason,
        rejected: Collection[PeerId],
        now_s: float,
    ) -> None:
        """A participant has ended a ballot; whom it names counts also if another has ended it before.

        Raises:
            ProtocolError: its ballot is out of reach.
        """
        self._check_leap(peer, outer_step, ballot)
        decision, under = self.decision, self.decision.under_way
        if outer_step != decision.slot.outer_step:
            return
        if under is None and ballot > decision.promised:
            # Its roster has not come here. Those who have joined it take this peer for a part of it until it
            # says that it is ready, which would be a lie if it still joined.
            decision.promised = ballot
            decision.aborts.clear()
            self._announce(now_s)
        roster = under.roster if under else decision.ended
        if under is None and ballot == decision.promised and (roster is None or roster.ballot != ballot):
            decision.aborts.setdefault(peer, (reason, tuple(rejected)))  # understood once its roster comes
            return
        if roster is None or peer not in roster.peers or ballot != roster.ballot:
            return
        named = set(reason.peers) & set(roster.peers) - {peer}
        self.assembly.edges |= {edge(peer, other) for other in named}
        for liar in set(rejected) & named:
            if liar != self.me:
                self.assembly.reject(liar)  # before the next ballot is formed
            self._do(Reject(liar, f"{peer} says so: {reason.text}", peer))
        if not named and reason.kind not in ("gone", "silent"):
            self.assembly.note_quit(peer)
        if under is None:
            return
        under.lost.add(peer)
        led = under.voted and not self._gathers(under)
        if led and peer != under.roster.ballot.leader:
            return
        if not self._count_votes(now_s) and (led or not decision.may_be_decided(under)):
            self._fail(Reason("told", f"{peer}: {reason.text}", (peer, *sorted(named))), now_s, tell=False)

    def on_vote(self, peer: PeerId, outer_step: int, ballot: Ballot, vote: Vote, now_s: float) -> None:
        """A participant holds the whole update and names it; its signature is checked."""
        decision, under = self.decision, self.decision.under_way
        if outer_step != decision.slot.outer_step:
            return
        decision.tally.note_vote(peer, ballot, vote)
        if under is not None and peer in under.roster.peers and peer != self.me:
            if under.voted:  # else it is data that is missing here
                under.progress_s = now_s
            self._accept(under)
            if ballot == under.roster.ballot and not self._gathers(under):
                self._spread(under, now_s)  # it has found that the leader does not gather them
        self._count_votes(now_s)

    def joined_roster(self, outer_step: int, ballot: Ballot) -> Roster | None:
        """The roster of the ballot that this peer has joined last, if it is that one."""
        under = self.decision.under_way
        roster = under.roster if under is not None else self.decision.ended
        known = roster is not None and outer_step == self.decision.slot.outer_step
        return roster if known and roster is not None and roster.ballot == ballot else None

    def on_certificate(self, entry: Entry, certificate: Certificate, now_s: float) -> bool:
        """Another peer has committed an entry, with a certificate that was checked.

        Returns:
            Whether this peer had voted for it, and commits it now.
        """
        if entry.hash not in self.decision.voted:
            return False
        under = self.decision.under_way
        if under is not None and under.roster.ballot == certificate.ballot:
            self._note_decided(under, certificate.voters, now_s)
        self._commit(entry, certificate)
        return True

    def _check_leap(self, peer: PeerId, outer_step: int, ballot: Ballot) -> None:
        """Refuse a ballot that no honest peer can have come to: nobody could go above it."""
        decision = self.decision
        here = decision.slot.outer_step
        seen = max(decision.seen, decision.promised).attempt if outer_step == here else 0
        if outer_step >= here and ballot.attempt > seen + MAX_LEAP:
            raise ProtocolError(f"{peer}: ballot {ballot.attempt} is far above all that were seen")

    # -- being ready, and leading --------------------------------------------------------------------

    def _announce(self, now_s: float) -> None:
        """Tell everybody that this peer is due, with what it has promised and accepted."""
        decision = self.decision
        if decision.offer is None or self._recalled is not None:
            return
        ready = Ready(
            previous=decision.slot.previous,
            offer=decision.offer,
            promised=decision.promised,
            accepted=decision.accepted,
            stalled=self.assembly.patience.stalled(decision.slot.outer_step),
            rates=self.assembly.rates,
            mandate=decision.slot.goes_by,
        )
        self.assembly.take_ready(self.me, decision.slot.outer_step, ready, now_s)
        self._lead(now_s)

    def _lead(self, now_s: float) -> None:
        """Tell others what they need to know, and propose a roster if this peer leads and it is time."""
        assembly = self.assembly
        if self.decision.under_way is not None or not assembly.is_open:
            return
        told, proposes = assembly.lead(now_s)
        self._actions += told
        # who follows others catches up first: what they have committed is decided
        found = assembly.next_roster(self.decision.seen, now_s) if proposes else None
        if isinstance(found, Roster) and found.entry is None:
            refused = self._judged(found, now_s)
            refused.pop(self.me, None)
            for peer, why in refused.items():
                self._reject(peer, why)
            if refused:
                return self._lead(now_s)
        if isinstance(found, Roster):
            assembly.proposed(now_s)
            self._do(Propose(found))
            self._join(found, now_s)
        elif found is not None:
            self._tell(assembly.view.live, "unformed", {"reason": found.text})
            assembly.not_formed(found)

    # -- a ballot ------------------------------------------------------------------------------------

    def _join(self, roster: Roster, now_s: float) -> None:
        """Take part in a ballot, if no promise forbids and this peer is in it."""
        decision = self.decision
        if roster.ballot <= decision.promised:
            if roster.ballot != decision.promised:
                self._decline(roster, f"it has joined a later ballot, {decision.promised.attempt}", now_s)
            elif decision.aborts and decision.under_way is None:
                decision.ended, aborts = roster, dict(decision.aborts)
                decision.aborts.clear()
                for peer, (reason, rejected) in aborts.items():
                    self.on_abort(peer, roster.outer_step, roster.ballot, reason, rejected, now_s)
                self._lead(now_s)
            return
        leader, decision.seen = PeerId(roster.ballot.leader), max(decision.seen, roster.ballot)
        self.assembly.hold(roster)
        offer = decision.offer
        if self.me not in roster.peers or offer is None or self._recalled is not None:
            self._decline(roster, "it has given up on this round", now_s)
            return
        member = next(m for m in roster.participants if m.peer == self.me)
        stale = ""
        if decision.accepted is not None and roster.accepted_in < decision.accepted[0]:
            stale = (
                f"it has accepted an update in ballot {decision.accepted[0].attempt}, still to be finished"
            )
        elif roster.entry is None and (
            ContributionId(member.start, member.tokens, member.sum) != offer.id
            or member.samples != offer.samples
        ):
            stale = "it contributes something else by now"
        if stale:  # its leader can't have known; it hears what holds as soon as this peer is free
            self.assembly.take_call(leader, roster.outer_step, roster.previous, now_s)
            self._decline(roster, stale, now_s)
            return
        under = decision.under_way
        if under is not None:
            taken = Reason(
                "superseded", f"ballot {roster.ballot.attempt} of {roster.ballot.leader} took its place"
            )
            self._tell_abort(under.roster, taken, ())  # its leader may have heard of no other ballot
            self._end(under, taken, now_s)
        decision.promised = roster.ballot
        decision.under_way = UnderWay(roster, now_s, now_s)
        decision.ballots += 1
        decision.joined_s = now_s
        self._do(Keep(decision.record(self.rules.fragment)))

    def on_kept(self, record: Record, now_s: float) -> None:
        """A record is on disk: what waited for it may leave."""
        under = self.decision.ballot(record.outer_step, record.promised)
        if under is None:
            return
        roster = under.roster
        if not under.kept:
            under.kept = True
            under.progress_s = now_s
            if roster.entry is not None:
                body: dict[str, Json] = {"ballot": roster.ballot.to_json(), "entry": roster.entry.hash}
                self._tell(roster.peers, "joined", body)
                self.decision.tally.note_joined(self.me, roster.ballot, roster.entry.hash)
                self._do(Finish(roster))
                return
            refused = self._refused(roster, now_s)
            if refused is not None:
                self.assembly.edges |= {edge(self.me, peer) for peer in refused.peers if peer != self.me}
                for liar in set(refused.peers) - {self.me} if refused.kind == "claims" else ():
                    self.assembly.reject(liar)
                self._fail(refused, now_s, liars=refused.peers if refused.kind == "claims" else ())
                return
            offer = self.decision.offer
            if offer is None:
                return
            if offer.id not in self.decision.sent:
                self.decision.sent.append(offer.id)
            self._do(Reduce(roster, offer.id))
        elif under.entry is not None and not under.voted and record.accepted is not None:
            under.voted = True
            under.progress_s = self.decision.accepted_s = now_s
            self._cast(under)

    def on_not_kept(self, record: Record, why: str, now_s: float) -> None:
        """A record could not be written: nothing that depends on it leaves, and this peer drops out."""
        if self.decision.ballot(record.outer_step, record.promised) is not None:
            text = f"a promise of this island could not be written down: {why}"
            self.decision.refusal = Reason("disk", text, (self.me,))
            self._fail(self.decision.refusal, now_s)

    def _judged(self, roster: Roster, now_s: float) -> dict[PeerId, str]:
        total_tokens = self.decision.slot.total_tokens
        return self.judge.judge(roster.participants, roster.outer_step, total_tokens, now_s)

    def _refused(self, roster: Roster, now_s: float) -> Reason | None:
        """Why this peer takes no part in a ballot with somebody that is out, or claims what can't be."""
        out = [peer for peer in roster.peers if peer in self.assembly.view.banned]
        if out:
            return Reason("declined", f"{', '.join(out)} is out of the run", tuple(out))
        refused = self._judged(roster, now_s)
        if self.me in refused:  # ready again at once, it would be refused at once
            text = f"this island's contribution can't be accepted: {refused[self.me]}"
            self.decision.refusal = Reason("claims", text, (self.me,))
        if not refused:
            return None
        return Reason(
            "claims", "; ".join(f"{p}: {why}" for p, why in refused.items()), tuple(sorted(refused))
        )

    def on_staged(self, ballot: Ballot, entry: Entry, now_s: float) -> None:
        """The whole update of a ballot is held here, and makes this entry."""
        under = self.decision.ballot(entry.outer_step, ballot)
        if under is None or not under.kept:
            return
        under.entry, under.progress_s = entry, now_s
        self.decision.hold(entry)
        self._accept(under)

    def _accept(self, under: UnderWay) -> None:
        """Accept the update that is held, once a quorum has joined its ballot."""
        roster, entry, decision = under.roster, under.entry, self.decision
        done = decision.accepted is not None and decision.accepted[0] == roster.ballot
        if entry is None or done or not decision.is_joined(roster):
            return
        decision.accepted = roster.ballot, entry
        self._do(Keep(decision.record(self.rules.fragment)))

    def on_joined(self, peer: PeerId, outer_step: int, ballot: Ballot, entry: Digest, now_s: float) -> None:
        """A participant has joined a ballot that finishes an update, and has that on disk."""
        if outer_step != self.decision.slot.outer_step:
            return
        self.decision.tally.note_joined(peer, ballot, entry)
        under = self.decision.ballot(outer_step, ballot)
        if under is not None and peer in under.roster.peers:
            under.progress_s = now_s
            self._accept(under)

    def on_broken(self, ballot: Ballot, reason: Reason, now_s: float, *, hollow: bool = False) -> None:
        """What was done for a ballot has failed; a reason of kind `own` keeps this peer out of the slot.

        Args:
            hollow: nobody can have the whole of what this peer has sent.
        """
        under = self.decision.ballot(self.decision.slot.outer_step, ballot)
        if under is None:
            return
        if reason.kind == "own":
            self.decision.refusal = reason
        if reason.kind == "fetch" and not self.rules.majority and self._all_are_back(under.roster.entry):
            self.decision.accepted = None
        if hollow and self.decision.offer is not None:
            mine = self.decision.offer.id
            self.decision.sent = [sent for sent in self.decision.sent if sent != mine]
        liars: tuple[PeerId, ...] = ()
        others = tuple(peer for peer in reason.peers if peer != self.me)
        if reason.kind == "bad":
            liars = others
            for peer in liars:
                self._reject(peer, reason.text)
        elif others:
            self.assembly.note_stalls(others)
        self._fail(reason, now_s, liars=liars)

    def _all_are_back(self, entry: Entry | None) -> bool:
        """Whether all who took part in an update are here, and stand before it: then nobody has committed it.

        With `continue` its bytes are on nobody's disk; where all have died with them it can't be finished.
        """
        here = {self.me, *self.assembly.aligned()}
        return entry is not None and {peer for peer, _ in entry.participants} <= here

    def moved(self, now_s: float) -> None:
        """Data of the ballot under way has come or gone."""
        if self.decision.under_way is not None:
            self.decision.under_way.progress_s = now_s

    def tick(
        self, now_s: float, limit_s: float, parts: Collection[PeerId], means: Collection[PeerId]
    ) -> None:
        """End a ballot in which nothing has moved for longer than it ever takes, or decide it without those
        whose vote has not come.

        Args:
            limit_s: how long a ballot may stand still.
            parts, means: who owes this peer data.
        """
        under = self.decision.under_way
        if under is None:
            return
        owing = sorted(parts)
        if under.entry is not None and under.roster.entry is not None:
            owing = sorted(set(under.roster.peers) - set(self.decision.tally.joined(under.roster)))
        elif not owing and means:
            owing = sorted(means)
            limit_s = max(limit_s, min(REDUCER_PATIENCE * limit_s, self.rules.policy.deadline_s))
        still_s = now_s - under.progress_s
        if still_s < limit_s:
            return
        if not under.voted:
            self.assembly.note_stalls(owing)
            names = f" from {', '.join(owing)}" if owing else ""
            reason = Reason("stalled", f"nothing came for {still_s:.1f} s{names}", tuple(owing), still_s)
            self._fail(reason, now_s)
        elif not self._gathers(under):
            leader = PeerId(under.roster.ballot.leader)
            self.assembly.note_stalls((leader,))
            under.lost.add(leader)
            self._spread(under, now_s)
        elif not self._count_votes(now_s, without=under.roster.peers):
            silent = self.decision.count(under).silent
            self.assembly.note_stalls(silent)
            text = f"no vote of {', '.join(silent)} within {still_s:.1f} s"
            self._fail(Reason("votes", text, tuple(silent), still_s), now_s)

    def standing_still(self, now_s: float, limit_s: float, owing: Collection[PeerId]) -> None:
        """Note who owes this peer data in a ballot that has stood still for half as long as one may.

        So a ballot that is ended by whoever holds it up is not formed with it again.
        """
        under = self.decision.under_way
        if under is not None and not under.voted and now_s - under.progress_s >= limit_s / 2:
            self.assembly.note_stalls(owing)

    # -- deciding ------------------------------------------------------------------------------------

    def _gathers(self, under: UnderWay) -> bool:
        """Whether the votes of a ballot come here."""
        return under.spread or under.roster.ballot.leader == self.me

    def _cast(self, under: UnderWay) -> None:
        """Vote: the leader gathers the votes, and tells the certificate."""
        assert under.entry is not None
        to = under.roster.peers if under.spread else (PeerId(under.roster.ballot.leader),)
        self._do(CastVote(under.roster, under.entry, to))

    def _spread(self, under: UnderWay, now_s: float) -> None:
        """The leader is gone, does not say what is decided, or can't decide: all tell all their votes."""
        under.spread, under.progress_s = True, now_s
        if under.voted:
            self._cast(under)

    def _count_votes(self, now_s: float, *, without: Collection[PeerId] = ()) -> bool:
        """Commit with the equal votes of all, or of a quorum without some; end it where votes differ.

        Args:
            without: whose votes are not waited for. The others may still lack data of this peer, which would
                have to be fetched from it later.

        Returns:
            Whether the ballot is over.
        """
        decision, under = self.decision, self.decision.under_way
        if under is None or not under.voted or under.entry is None:
            return False
        roster, entry = under.roster, under.entry
        count = decision.count(under)
        if count.enough and set(count.silent) <= {*without, *under.lost}:
            for peer in count.differing:
                state = count.votes[peer].state
                self._reject(peer, f"its digest after outer step {roster.outer_step} is {state}")
            self._note_decided(under, count.votes, now_s)
            certificate = self._certificate(roster, count)
            if roster.ballot.leader == self.me:
                self._do(TellDecided(roster, entry, certificate))
            self._commit(entry, certificate)
            return True
        if not count.differing or count.silent:
            return False
        if not under.spread:
            self._spread(under, now_s)  # all have to see that they differ
            return self._count_votes(now_s)
        # Honest votes that differ can't commit anywhere, so this promise is void; a liar may have sent
        # another vote to the others, so what was voted for is kept until one of them has committed.
        decision.accepted = None
        decision.refusal = Reason(
            "differ",
            f"digests differ after outer step {roster.outer_step}: here {entry.state_digest[:12]}, "
            + ", ".join(f"{peer} {count.votes[peer].state[:12]}" for peer in count.differing),
            tuple(count.differing),
        )
        self._fail(decision.refusal, now_s, tell=False)
        return True

    def _note_decided(self, under: UnderWay, voters: Collection[PeerId], now_s: float) -> None:
        """A ballot is decided, perhaps without the votes of some."""
        if silent := [peer for peer in under.roster.peers if peer not in voters]:
            still_s = now_s - under.progress_s
            text = f"committed without the vote of {', '.join(silent)}, not here after {still_s:.1f} s"
            self._note_end(under, Reason("votes", text, tuple(silent), still_s), now_s, committed=True)
            self.assembly.note_stalls(silent)
        self.assembly.patience.data_passed(voters)

    def _certificate(self, roster: Roster, count: Count) -> Certificate:
        goodbyes = self.assembly.view.goodbyes
        return Certificate(
            ballot=roster.ballot,
            absent=roster.absent,
            votes=tuple((peer, count.votes[peer].signature) for peer in sorted(count.agreeing)),
            goodbyes=tuple(goodbyes[peer] for peer in roster.absent if peer in goodbyes),
            mandate=self.decision.slot.mandate,
        )

    def _commit(self, entry: Entry, certificate: Certificate) -> None:
        self._drop()
        self._do(Commit(entry, certificate))

    def _fail(
        self, reason: Reason, now_s: float, *, tell: bool = True, liars: Collection[PeerId] = ()
    ) -> None:
        """End the ballot under way; the next one is formed by whoever leads."""
        decision, under = self.decision, self.decision.under_way
        if under is None:
            return
        roster = under.roster
        if tell:
            self._tell_abort(roster, reason, liars)
        self._end(under, reason, now_s)
        decision.ended = roster
        self.assembly.first_ready_s = now_s
        if decision.refusal is None:
            self._announce(now_s)

    def _end(self, under: UnderWay, reason: Reason, now_s: float) -> None:
        self._note_end(under, reason, now_s)
        self._drop()

    def _note_end(self, under: UnderWay, reason: Reason, now_s: float, *, committed: bool = False) -> None:
        roster, seconds = under.roster, now_s - under.joined_s
        leader = PeerId(roster.ballot.leader)
        self._do(Ended(BallotEnd(roster.ballot.attempt, leader, roster.peers, reason, seconds, committed)))

    def _drop(self) -> None:
        """Drop the ballot under way without a word."""
        if self.decision.under_way is not None:
            self._do(Drop(self.decision.under_way.roster.ballot))
            self.decision.under_way = None

    def _decline(self, roster: Roster, text: str, now_s: float, *, liar: PeerId | None = None) -> None:
        """Tell all in a ballot that this peer takes no part in it; they would wait for it.

        Args:
            liar: whose contribution to this outer step was not accepted here.
        """
        if self.me in roster.peers:
            liars = () if liar is None else (liar,)
            self._tell_abort(roster, Reason("declined", text, liars), liars)
        if self.decision.under_way is None:
            self._announce(now_s)  # those who have joined it take this peer for a part of it

    def _tell_abort(self, roster: Roster, reason: Reason, liars: Collection[PeerId]) -> None:
        named = [str(peer) for peer in sorted(set(reason.peers) & set(roster.peers) - {self.me})]
        body: dict[str, Json] = {
            "ballot": roster.ballot.to_json(),
            "kind": reason.kind,
            "reason": reason.text[:500],
            "blamed": list(named),
            "rejected": [str(peer) for peer in sorted(liars)],
        }
        self._tell(roster.peers, "abort", body)

    def _reject(self, peer: PeerId, why: str) -> None:
        if peer == self.me:
            return
        self.assembly.reject(peer)
        self._do(Reject(peer, why))

    # -- what an earlier life has promised -----------------------------------------------------------

    def _be_bound(self) -> None:
        record, slot = self._recalled, self.decision.slot
        if record is None or record.outer_step > slot.outer_step:
            return
        self._recalled = None
        if record.outer_step == slot.outer_step and record.previous == slot.previous:
            self.decision.stand_by(record)

    def _held(self, now_s: float) -> bool:
        """Whether an earlier promise keeps this peer out; after a deadline the round is given up.

        Where all who took part in that ballot train and none has that history, all have gone back to a
        checkpoint, and the promise is void; who is still joining may have it on disk.
        """
        record, decision = self._recalled, self.decision
        if record is None:
            return False
        fragment, height = self.rules.fragment, decision.slot.outer_step - 1
        view = self.assembly.view
        steps = {peer: view.live[peer].state.outer_steps[fragment:] for peer in view.training}
        others = set(record.peers) - {self.me}
        if all(peer in steps and steps[peer] and steps[peer][0] <= height for peer in others):
            self._recalled = None
            self._do(Forget())
            return False
        if now_s - self._held_since_s >= self.rules.policy.deadline_s:
            text = (
                f"this island has taken part in outer step {record.outer_step} before it was restarted, and "
                f"none of the live islands knows what came after outer step {height}"
            )
            self.assembly.unformed = Reason("bound", text, tuple(sorted(others)), now_s - self._held_since_s)
        return True

    def _tell(self, peers: Collection[PeerId], kind: str, body: dict[str, Json]) -> None:
        others = tuple(peer for peer in peers if peer != self.me)
        if others:
            self._do(Tell(others, kind, body))

    def _do(self, action: Action) -> None:
        self._actions.append(action)
