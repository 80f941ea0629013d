"""The round machine alone, under events in any order, sense or nonsense."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lowcomm.errors import ProtocolError
from lowcomm.ledger.certificate import NO_BALLOT, Ballot, is_quorum
from lowcomm.ledger.entry import ContributionId
from lowcomm.ledger.mandate import Mandate
from lowcomm.peers.peer import Chains, State
from lowcomm.rounds.assembly import Assembly
from lowcomm.rounds.claims import ClaimJudge, Limits
from lowcomm.rounds.machine import RoundMachine
from lowcomm.rounds.policy import RoundPolicy, Rules
from lowcomm.rounds.roster import Participant, Roster
from lowcomm.rounds.values import (
    CastVote,
    Commit,
    Finish,
    Keep,
    Offer,
    Propose,
    Ready,
    Reduce,
    Seen,
    Slot,
    View,
    Vote,
)
from lowcomm.sim import checker
from lowcomm.sim.checked_values import Budget, entry_of, setting_of
from lowcomm.sim.checked_world import Swarm
from lowcomm.types import Reason

ME, OTHERS, STRANGER = "b", ("a", "c", "d"), "nobody"
MEMBERS = ("a", "b", "c", "d")
HEAD, ELSEWHERE = "0" * 64, "f" * 64
QUICK = settings(deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])


def rules_of(partition):
    policy = RoundPolicy(deadline_s=10.0, partition=partition)
    return Rules(
        run_id="run", fragment=0, policy=policy, grace_s=30.0,
        elements=8, block_elements=1, chunk_elements=8,
    )  # fmt: skip


def named(peer, tokens=1):
    return ContributionId(0, tokens, f"{ord(peer[0]):032x}")


def entry_in(ballot, peers, outer_step=1, previous=HEAD):
    roster = roster_of(ballot, peers, outer_step=outer_step, previous=previous)
    return entry_of(roster, Slot(outer_step, previous, MEMBERS, 0), rules_of("majority"))


def roster_of(
    ballot, peers, *, outer_step=1, previous=HEAD, entry=None, accepted_in=NO_BALLOT, absent=(), mandate=None
):
    participants = tuple(Participant(peer, 1, 1.0, 0, start=0, sum=named(peer).sum) for peer in sorted(peers))
    return Roster(
        fragment=0, outer_step=outer_step, ballot=ballot, previous=previous, participants=participants,
        stops=(8,) * len(participants), chunk_elements=8, entry=entry, accepted_in=accepted_in,
        absent=tuple(sorted(set(absent) - set(peers))), mandate=mandate,
    )  # fmt: skip


peers = st.sampled_from((*MEMBERS, STRANGER))
ballots = st.builds(Ballot, st.sampled_from((0, 1, 2, 3, 4, 9, 5_000)), peers)
groups = st.lists(peers, min_size=1, max_size=4, unique=True)
steps = st.sampled_from((0, 1, 1, 1, 2, 3))
heads = st.sampled_from((HEAD, HEAD, HEAD, ELSEWHERE))
entries = st.builds(entry_in, ballots, groups, st.sampled_from((1, 2)), heads)
accepted = st.none() | st.tuples(ballots, entries)
readies = st.builds(
    lambda peer, head, promised, accepted, stalled: (
        peer, Ready(head, Offer(named(peer), 1.0, 0), promised, accepted, tuple(stalled)),
    ),
    peers, heads, ballots, accepted, st.lists(peers, max_size=2),
)  # fmt: skip
rosters = st.builds(
    lambda ballot, group, step, head, finishes, absent: roster_of(
        ballot, group, outer_step=step, previous=head, absent=absent,
        entry=finishes[1] if finishes else None, accepted_in=finishes[0] if finishes else NO_BALLOT,
    ),
    ballots, groups, steps, heads, accepted, st.just(()) | st.lists(peers, max_size=2),
)  # fmt: skip
reasons = st.builds(
    lambda kind, named: Reason(kind, "so it is", tuple(named)),
    st.sampled_from(("gone", "stalled", "declined", "claims", "bad", "own", "told")),
    st.lists(peers, max_size=3),
)
live = st.lists(st.sampled_from(OTHERS), unique=True)
sensible = st.tuples(
    st.just("sensible roster"), st.integers(0, 2), st.sampled_from(OTHERS),
    st.lists(st.sampled_from(OTHERS), unique=True), st.booleans(),
)  # fmt: skip
"""By how much its ballot is above all that were joined, its leader, the others in it, whether it finishes."""
events = st.one_of(
    sensible,
    sensible,
    sensible,
    st.tuples(st.just("ready"), steps, readies),
    st.tuples(st.just("ready"), st.just(1), readies),
    st.tuples(st.just("roster"), rosters),
    st.tuples(st.just("roster"), rosters),
    st.tuples(st.just("unready"), peers, steps, st.booleans()),
    st.tuples(st.just("unformed"), peers, steps),
    st.tuples(st.just("abort"), peers, steps, ballots, reasons, st.lists(peers, max_size=1)),
    st.tuples(st.just("vote"), peers, steps, ballots, entries),
    st.tuples(st.just("joined"), peers, steps, ballots, entries),
    st.tuples(st.just("vote for mine"), st.sampled_from(OTHERS)),
    st.tuples(st.just("join mine"), st.sampled_from(OTHERS)),
    st.tuples(st.just("kept")),
    st.tuples(st.just("kept")),
    st.tuples(st.just("not kept")),
    st.tuples(st.just("staged")),
    st.tuples(st.just("staged")),
    st.tuples(st.just("broken"), reasons, st.booleans()),
    st.tuples(st.just("down"), peers),
    st.tuples(st.just("silent"), peers),
    st.tuples(st.just("look"), live),
    st.tuples(st.just("look"), st.just(list(OTHERS))),
    st.tuples(st.just("time"), st.sampled_from((0.0, 0.1, 9.0, 11.0, 100.0, -5.0))),
    st.tuples(st.just("tick"), st.lists(peers, max_size=2)),
    st.tuples(st.just("contribute"), st.integers(1, 3)),
    st.tuples(st.just("abandon"), st.booleans()),
)
mandates = st.tuples(st.just("mandate"), st.integers(1, 3), groups)


class Driven:
    """A machine, and what it may never do."""

    def __init__(self, partition, machine=RoundMachine):
        self.rules = rules_of(partition)
        self.slot = Slot(1, HEAD, MEMBERS, 0)
        self.machine = machine(ME, self.rules, self.slot, ClaimJudge(Limits()))
        self.now_s = 0.0
        self.waiting, self.kept, self.work = [], [], []
        self.highest = NO_BALLOT
        self.live = list(OTHERS)
        self.look(self.live)
        self.do(("contribute", 1))

    def view(self):
        state = State(phase="training", chains=Chains((0,), (HEAD,), (0,)))
        live = {peer: Seen(state, answered_s=self.now_s) for peer in self.live}
        return View(live, "training", {ME: 0.0}, {})

    def look(self, live):
        self.live = live
        self.machine.assembly.view = self.view()
        self.machine.look(self.now_s)

    def do(self, event):
        try:
            self._hand_in(event)
        except ProtocolError:
            pass
        self.obey()

    def _hand_in(self, event):
        machine, now_s = self.machine, self.now_s
        under = machine.decision.under_way
        match event:
            case ("ready", step, (peer, ready)):
                machine.on_ready(peer, step, ready, now_s)
            case ("roster", roster):
                machine.on_roster(roster, now_s)
            case ("sensible roster", more, leader, others, finishes):
                decision = machine.decision
                ballot = Ballot(decision.promised.attempt + more, leader)
                accepted_in, entry = (
                    decision.accepted if decision.accepted and finishes else (NO_BALLOT, None)
                )
                peers, mandate = {ME, leader, *others}, self.slot.goes_by
                machine.on_roster(
                    roster_of(ballot, peers, entry=entry, accepted_in=accepted_in, mandate=mandate), now_s
                )
            case ("unready", peer, step, answers):
                machine.on_unready(peer, step, answers=answers)
            case ("unformed", peer, step):
                machine.on_unformed(peer, step, "too few", now_s)
            case ("abort", peer, step, ballot, reason, rejected):
                machine.on_abort(peer, step, ballot, reason, rejected, now_s)
            case ("vote", peer, step, ballot, entry):
                machine.on_vote(peer, step, ballot, Vote(entry.hash, entry.state_digest, b"0"), now_s)
            case ("joined", peer, step, ballot, entry):
                machine.on_joined(peer, step, ballot, entry.hash, now_s)
            case ("vote for mine", peer) if under is not None and under.entry is not None:
                vote = Vote(
                    under.entry.hash,
                    under.entry.state_digest,
                    b"0",
                    under.roster.absent,
                    under.roster.mandate,
                )
                machine.on_vote(peer, 1, under.roster.ballot, vote, now_s)
            case ("join mine", peer) if under is not None and under.roster.entry is not None:
                machine.on_joined(peer, 1, under.roster.ballot, under.roster.entry.hash, now_s)
            case ("kept",) if self.waiting:
                record = self.waiting.pop(0)
                self.kept.append(record)
                machine.on_kept(record, now_s)
            case ("not kept",) if self.waiting:
                machine.on_not_kept(self.waiting.pop(0), "the disk is full", now_s)
            case ("staged",) if self.work:
                roster = self.work.pop()
                machine.on_staged(
                    roster.ballot, roster.entry or entry_of(roster, self.slot, self.rules), now_s
                )
            case ("broken", reason, hollow) if self.work:
                machine.on_broken(self.work.pop().ballot, reason, now_s, hollow=hollow)
            case ("down", peer):
                machine.peer_down(peer, "cut", now_s)
            case ("silent", peer):
                machine.peer_silent(peer, "silent", now_s)
            case ("look", live):
                self.look(live)
            case ("time", seconds):
                self.now_s += seconds
            case ("tick", parts):
                machine.tick(now_s, 10.0, parts, ())
            case ("contribute", tokens):
                machine.contribute(Offer(named(ME, tokens), 1.0, 0), now_s)
            case ("abandon", answers):
                machine.abandon(now_s, answers=answers)
            case ("mandate", number, group) if self.rules.majority:
                before = machine.decision.accepted
                mandate = Mandate(
                    run_id="run", positions={0: (0, HEAD)}, members=tuple(sorted(group)), number=number
                )
                self.slot = replace(self.slot, electorate=mandate.members, mandate=mandate)
                machine.begin(self.slot, now_s)
                assert machine.decision.accepted == before

    def obey(self):
        decision = self.machine.decision
        for action in self.machine.take_actions():
            match action:
                case Keep(record):
                    assert record.promised >= self.highest
                    self.highest = record.promised
                    self.waiting.append(record)
                case Reduce(roster, _) | Finish(roster):
                    assert any(record.promised == roster.ballot for record in self.kept)
                    self.check(roster)
                    self.work.append(roster)
                case CastVote(roster, entry):
                    accepted = (roster.ballot, entry)
                    assert any(record.accepted == accepted for record in self.kept)
                    assert roster.ballot == decision.promised
                    self.check(roster)
                case Propose(roster):
                    assert ME in roster.peers or roster.ballot.leader == ME
                    self.check(roster)
                    assert roster.ballot >= self.highest
                    if self.rules.majority:
                        assert not roster.absent
                case Commit(entry, certificate):
                    assert is_quorum(certificate.voters, self.slot.electorate, certificate.absent)
                    assert certificate.mandate == self.slot.mandate
                    assert entry.previous == HEAD
        assert decision.promised >= self.highest

    def check(self, roster):
        assert is_quorum(roster.peers, self.slot.electorate, roster.absent)
        assert roster.mandate == self.slot.goes_by


@pytest.mark.parametrize("examples", [300, pytest.param(3_000, marks=pytest.mark.slow)])
def test_no_order_of_events_breaks_a_rule_of_an_acceptor(examples):
    @settings(QUICK, max_examples=examples)
    @given(st.sampled_from(("majority", "continue")), st.lists(events, min_size=5, max_size=40))
    def drive(partition, happens):
        driven = Driven(partition)
        for event in happens:
            driven.do(event)

    drive()


@settings(QUICK, max_examples=300)
@given(st.lists(st.one_of(events, events, events, mandates), min_size=5, max_size=40))
def test_nor_does_an_operator_that_says_who_decides(happens):
    driven = Driven("majority")
    for event in happens:
        driven.do(event)


class VotesUnwritten(RoundMachine):
    def _accept(self, under):
        before = self.decision.accepted
        super()._accept(under)
        if self.decision.accepted is not before:
            self._do(CastVote(under.roster, under.entry, under.roster.peers))


class JoinsBelow(RoundMachine):
    def _join(self, roster, now_s):
        self.decision.promised = NO_BALLOT
        super()._join(roster, now_s)


class AgreesToAnySize(Assembly):
    def agrees(self, roster, now_s):
        return True


class JoinsAnySize(RoundMachine):
    def __init__(self, me, rules, slot, judge):
        super().__init__(me, rules, slot, judge)
        self.assembly = AgreesToAnySize(me, rules, slot)


@pytest.mark.parametrize("machine", [VotesUnwritten, JoinsBelow, JoinsAnySize])
def test_a_machine_that_breaks_a_rule_is_found(machine):
    @settings(QUICK, max_examples=1_000, phases=(Phase.generate,), report_multiple_bugs=False)
    @given(st.lists(events, min_size=5, max_size=40))
    def drive(happens):
        driven = Driven("majority", machine)
        for event in happens:
            driven.do(event)

    with pytest.raises(AssertionError):
        drive()


@settings(QUICK, max_examples=120)
@given(st.integers(2, 4), st.integers(0, 5), st.lists(st.integers(0, 1 << 16), max_size=80))
def test_several_machines_agree(islands, run, choices):
    swarm = Swarm(setting_of(islands, 2, run=run))
    world = swarm.beginning(Budget(losses=2, crashes=2, rollbacks=1, cuts=2, deadlines=3, slow=2))
    for choice in choices:
        possible = swarm.events(world)
        step = swarm.step(world, possible[choice % len(possible)]) if possible else None
        if step is None:
            break
        assert not step.broken
        world = step.world
    assert checker.settle(swarm, world) == ""
