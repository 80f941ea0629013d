"""The model checker finds nothing in the machine that ships, and finds every fault that is planted in it."""

import dataclasses
import json

import pytest

from lowcomm.rounds.machine import RoundMachine
from lowcomm.rounds.roster import leader_order
from lowcomm.sim import checker
from lowcomm.sim.checked_values import Budget, setting_of
from lowcomm.sim.checked_world import Swarm

SMALL = {
    "2-islands-loss-crash": (2, 1, Budget(losses=1, crashes=1, deadlines=1)),
    "2-islands-slow-disk": (2, 1, Budget(crashes=1, slow=1, deadlines=1)),
    "2-islands-2-steps": (2, 2, Budget(losses=1, cuts=1)),
    "3-islands-cut": (3, 1, Budget(cuts=1, delays=1)),
}


@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL.keys())
def test_all_states_of_a_small_budget_keep_every_promise(case):
    islands, outer_steps, budget = case
    result = checker.search(setting_of(islands, outer_steps), budget, most_states=30_000)
    assert result.broken == [], "\n".join(result.trace)
    assert result.whole
    assert result.settled > 10


@pytest.mark.parametrize("islands", [3, 4])
def test_random_walks_keep_every_promise(islands):
    budget = Budget(losses=2, crashes=2, rollbacks=1, cuts=2, deadlines=3, slow=2)
    result = checker.walk(setting_of(islands, 2), budget, walks=15, seed=1)
    assert result.broken == [], "\n".join(result.trace)
    assert result.states > 500


def test_fewer_orders_find_the_same():
    """Leaving out orders that commute leaves out no outcome."""

    def outcomes(swarm, budget):
        first = swarm.beginning(budget)
        seen, waiting, found = {first}, [first], set()
        while waiting:
            steps = swarm.steps(waiting.pop())
            found |= {step.world.decided for step in steps}
            fresh = {step.world for step in steps} - seen
            seen |= fresh
            waiting += fresh
        return found, len(seen)

    class AllOrders(Swarm):
        def _alone(self, world):
            return None

    budget = Budget(losses=1, crashes=1)
    few, fewer_states = outcomes(Swarm(setting_of(2, 1)), budget)
    all_of_them, states = outcomes(AllOrders(setting_of(2, 1)), budget)
    assert few == all_of_them
    assert fewer_states < states


def test_the_command_says_what_it_visited(tmp_path, capsys):
    log = tmp_path / "log.json"
    assert checker.main(["--islands", "2", "--cuts", "1", "--json", str(log)]) == 0
    (run,) = json.loads(log.read_text())
    assert run["whole"]
    said = capsys.readouterr().out
    assert "2 islands, 1 outer steps, majority; cuts 1" in said
    assert f"all states within this budget: {run['states']:,} states" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--losses", "-1"], "--losses: expected 0 or more, got -1"),
        (["--outer-steps", "0"], "--outer-steps: expected 1 or more, got 0"),
        (["--islands", "9"], "invalid choice: 9"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(capsys, arguments, said):
    with pytest.raises(SystemExit, match="2"):
        checker.main(arguments)
    assert said in capsys.readouterr().err


def test_a_broken_promise_is_told_with_how_it_comes_about(monkeypatch, capsys):
    faulty = dataclasses.replace(setting_of(2, 1), machine=GivesUpForGood)
    monkeypatch.setattr(checker, "setting_of", lambda *_, **__: faulty)
    assert checker.main(["--cuts", "1"]) == 1
    said = capsys.readouterr().out
    assert "BROKEN: no commit any more" in said
    assert "cut a, b" in said


@pytest.mark.parametrize("line", checker.PUBLISHED)
def test_searches_that_are_published_are_understood(line):
    assert checker.main([*line.split(), "--most-states", "50", "--walks", "1"]) == 0


# -- faults that are planted, as those that the version before had ---------------------------------------


class ForgetsJoins(RoundMachine):
    """Nothing is on disk of a ballot that was joined, only votes."""

    def recall(self, record):
        if record.accepted is not None:
            super().recall(dataclasses.replace(record, promised=record.accepted[0]))


class ForgetsVotes(RoundMachine):
    """An update that is torn after a power cut voids the vote."""

    def recall(self, record):
        super().recall(dataclasses.replace(record, accepted=None))


class JoinsLower(RoundMachine):
    """A roster is joined whatever has been accepted before."""

    def _join(self, roster, now_s):
        accepted, self.decision.accepted = self.decision.accepted, None
        super()._join(roster, now_s)
        if self.decision.accepted is None and self.decision.under_way is None:
            self.decision.accepted = accepted


class CountsAnyVotes(RoundMachine):
    """Who has voted commits, whoever else has."""

    def _count_votes(self, now_s, *, without=()):
        under = self.decision.under_way
        if under is not None and under.voted and under.entry is not None:
            self._commit(under.entry, self._certificate(under.roster, self.decision.count(under)))
            return True
        return False


class VotesAtOnce(RoundMachine):
    """An update is finished before a quorum has joined the ballot: the machine's first form."""

    def _accept(self, under):
        joined = self.decision.tally
        for peer in under.roster.peers if under.roster.entry else ():
            joined.note_joined(peer, under.roster.ballot, under.roster.entry.hash)
        super()._accept(under)


class ForgetsWhatItSent(RoundMachine):
    """Only the contribution that is offered now is recognised."""

    def contribute(self, offer, now_s):
        self.decision.sent.clear()
        super().contribute(offer, now_s)


class GivesUpForGood(RoundMachine):
    """A ballot that has ended is not followed by being ready again."""

    def _announce(self, now_s):
        if self.decision.ended is None:
            super()._announce(now_s)


PLANTED = {
    "votes-without-quorum": (CountsAnyVotes, 2, Budget(losses=1), "no majority"),
    "gives-up": (GivesUpForGood, 2, Budget(cuts=1), "no commit any more"),
    "sent-forgotten": (ForgetsWhatItSent, 2, Budget(losses=2, deadlines=2), "does not recognise"),
}


@pytest.mark.parametrize("case", PLANTED.values(), ids=PLANTED.keys())
def test_a_search_finds_a_planted_fault(case):
    machine, islands, budget, said = case
    setting = dataclasses.replace(setting_of(islands, 1), machine=machine)
    result = checker.search(setting, budget, most_states=60_000)
    assert any(said in sentence for sentence in result.broken), result


def test_walks_find_a_planted_fault():
    setting = dataclasses.replace(setting_of(3, 1, run=1), machine=JoinsLower)
    result = checker.walk(setting, Budget(cuts=2), walks=400, seed=0)
    assert any("two entries" in sentence for sentence in result.broken), result
    assert result.trace


# -- executions that need more than chance ---------------------------------------------------------------


class Led:
    """A swarm of three, `a` to `c`, led through one execution."""

    def __init__(self, machine, order):
        """`order`: in which they lead."""
        runs = (run for run in range(1_000) if leader_order("abc", f"run {run}", 0, 1) == list(order))
        self.swarm = Swarm(dataclasses.replace(setting_of(3, 1, run=next(runs)), machine=machine))
        self.world = self.swarm.beginning(Budget(cuts=9, crashes=1, deadlines=9))
        self.broken = []

    def do(self, kind, *peers):
        event = (kind, *("abc".index(peer) if len(peer) == 1 else peer for peer in peers))
        assert event in self.swarm.events(self.world)
        step = self.swarm.step(self.world, event)
        self.world, self.broken = step.world, [*self.broken, *step.broken]

    def deliver(self, way, kind):
        """All messages on a way up to the next one of a kind."""
        while True:
            sender, receiver = ("abc".index(peer) for peer in way)
            came = self.swarm.kinds(self.world, sender, receiver)[0]
            self.do("deliver", *way)
            if came == kind:
                return

    def cut(self, one, other):
        """The link breaks, and both notice."""
        self.do("cut", one, other)
        self.do("deliver", one, other)
        self.do("deliver", other, one)

    def go_on(self, deadlines=6):
        """Whoever can decides; links that are cut stay cut."""
        for _ in range(deadlines):
            self.do("time")
            while ways := [e for e in self.swarm.events(self.world) if e[0] == "deliver"]:
                step = self.swarm.step(self.world, ways[0])
                self.world, self.broken = step.world, [*self.broken, *step.broken]


def finished_alone(machine):
    """b finishes v alone, above the ballot in which a and c have chosen w meanwhile."""
    led = Led(machine, "bac")
    led.deliver("ab", "ready")
    led.deliver("cb", "ready")
    led.deliver("ba", "roster")
    led.deliver("bc", "roster")
    led.deliver("ab", "part")
    led.deliver("cb", "part")  # b alone holds v
    led.cut("a", "b")  # b proposes to finish v
    led.deliver("ac", "opened")
    led.deliver("ca", "ready")
    led.deliver("ca", "ready")  # a proposes w to c
    led.deliver("ac", "roster")
    led.deliver("ac", "part")
    led.deliver("ca", "part")
    led.deliver("ca", "vote")  # a has decided w
    led.cut("a", "c")
    led.go_on()
    return led


def forgot_its_join(machine):
    """b gives its data to c in a ballot, is killed, and votes for another update in a lower one."""
    led = Led(machine, "cab")
    led.cut("a", "b")
    led.cut("a", "c")
    led.deliver("bc", "ready")
    led.deliver("cb", "roster")
    led.deliver("bc", "part")  # c alone holds v
    led.do("crash", "b", "whole")
    led.deliver("bc", "down")
    led.do("restart", "b")
    led.cut("b", "c")
    led.deliver("ab", "state")
    led.deliver("ba", "ready")  # a proposes w to b
    led.deliver("ab", "roster")
    led.deliver("ab", "part")
    led.deliver("ba", "vote")  # a has decided w
    led.cut("a", "b")
    led.do("heal", "b", "c")
    led.go_on()
    return led


def forgot_its_vote(machine):
    """a decides v by the vote of b, which is killed before it hears of that, and votes again."""
    led = Led(machine, "abc")
    led.deliver("ba", "ready")
    led.deliver("ca", "ready")
    led.deliver("ab", "roster")
    led.deliver("ac", "roster")
    led.deliver("ba", "part")
    led.deliver("ca", "part")
    led.deliver("ab", "part")
    led.deliver("cb", "part")
    led.deliver("ba", "vote")
    led.cut("a", "c")  # a has decided v
    led.do("crash", "b", "whole")
    led.deliver("bc", "down")
    led.deliver("ba", "down")
    led.do("restart", "b")
    led.cut("a", "b")
    led.go_on()
    return led


def test_who_refuses_a_roster_says_so_and_the_next_one_is_formed_at_once():
    """c proposes without knowing that b has accepted an update meanwhile, whose leader is gone."""
    led = Led(RoundMachine, "acb")
    led.cut("a", "c")
    led.deliver("ba", "ready")
    led.deliver("ab", "roster")
    led.deliver("ab", "part")  # b has accepted
    led.do("crash", "a", "whole")
    led.deliver("bc", "ready")  # from before
    led.deliver("cb", "roster")
    while ways := [event for event in led.swarm.events(led.world) if event[0] == "deliver"]:
        led.do("deliver", *("abc"[end] for end in ways[0][1:]))
    assert led.broken == []
    assert led.world.deadlines == 0
    assert led.swarm.heights(led.world) == [0, 1, 1]


EXECUTIONS = {
    "vote-forgotten": (forgot_its_vote, ForgetsVotes),
    "finished-alone": (finished_alone, VotesAtOnce),
    "join-forgotten": (forgot_its_join, ForgetsJoins),
}


@pytest.mark.parametrize("case", EXECUTIONS.values(), ids=EXECUTIONS.keys())
def test_an_execution_forks_only_with_the_fault(case):
    execution, faulty = case
    assert any("two entries" in sentence for sentence in execution(faulty).broken)
    led = execution(RoundMachine)
    assert led.broken == []
    assert led.swarm.heights(led.world) == [1, 1, 1]
