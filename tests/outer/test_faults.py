"""Deaths and lost messages at every stage of a round: nothing hangs, nothing forks, no work is lost."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from lowcomm import OuterLoop, RoundPolicy, Schedule, codecs, nesterov
from lowcomm.errors import JoinRefusedError, LossError
from lowcomm.exchanges.base import Message
from lowcomm.types import PeerId
from tests.outer.swarm import Result, Swarm, batch, in_parallel, make_model, name, train_step


class KilledError(Exception):
    """Ends the thread of an island that a test has killed."""


def assert_one_history(results: list[Result]) -> None:
    """All islands that committed an outer step of a fragment hold the same digest after it."""
    digests: dict[tuple[int, int], set[str]] = {}
    for result in results:
        assert result.error is None, result.error
        for report in result.committed:
            digests.setdefault((report.fragment, report.outer_step), set()).add(report.digest)
        assert result.tokens_trained == result.tokens_credited + result.tokens_left
    assert all(len(found) == 1 for found in digests.values()), digests


@pytest.mark.parametrize("sent", [True, False], ids=["while-sending", "while-receiving"])
@pytest.mark.parametrize("kind", ["ready", "opened", "roster", "part", "mean", "vote", "decided", "state"])
def test_a_death_at_any_stage_stops_nobody(kind: str, sent: bool) -> None:
    swarm = Swarm(islands=3, policy=RoundPolicy(deadline_s=10.0))
    victim, dead = name(1), threading.Event()  # it leads outer step 3

    def strike(sender: PeerId, receiver: PeerId, message: Message) -> bool:
        outer_step = message.body.get("outer_step", 2 if kind == "state" else 0)
        in_second_round = isinstance(outer_step, int) and outer_step >= 2  # who leads gets and sends the most
        if (
            message.kind == kind
            and (sender if sent else receiver) == victim
            and in_second_round
            and armed.is_set()
        ):
            dead.set()
            swarm.hub.kill(victim)
            return False
        return True

    armed = threading.Event()
    swarm.hub.filter = strike

    def each(inner_step: int, outer: OuterLoop) -> None:
        if inner_step >= 5:
            armed.set()
        if (kind, sent, inner_step) == ("opened", False, 15) and outer.peer_id == victim:
            dead.wait(10.0)  # only who is not ready yet is called
        if dead.is_set() and outer.peer_id == victim:
            raise KilledError

    def train(island: int) -> None:
        policy = RoundPolicy(deadline_s=0.5) if island == 1 else swarm.policy
        swarm.train(island, 24, each=each, round_policy=policy)

    in_parallel([lambda i=i: train(i) for i in range(3)], swarm.results, [0, 1, 2])
    survivors = [swarm.results[0], swarm.results[2]]
    assert_one_history(survivors)
    assert isinstance(swarm.results[1].error, KilledError)
    for result in survivors:
        assert all(report.committed for report in result.reports)
        assert len(result.reports[-1].participants) == 2
        assert result.digest == survivors[0].digest


@pytest.mark.parametrize(
    "kind", ["ready", "opened", "roster", "part", "mean", "vote", "decided", "abort", "state"]
)
def test_a_lost_message_costs_a_deadline_and_forks_nothing(kind: str) -> None:
    swarm = Swarm(islands=3, policy=RoundPolicy(deadline_s=1.0))
    lost: list[Message] = []

    def lose_one(sender: PeerId, receiver: PeerId, message: Message) -> bool:
        if message.kind == kind and not lost and message.body.get("outer_step", 2) >= 2:
            lost.append(message)
            return False
        return True

    swarm.hub.filter = lose_one
    results = list(swarm.run(steps=20).values())
    assert_one_history(results)
    assert lost or kind == "abort"
    assert max(len(result.committed) for result in results) >= 5


def test_the_founder_may_die_and_others_still_join() -> None:
    swarm = Swarm(islands=2, lease_s=1.0)
    gone, late_one = threading.Event(), swarm.results.setdefault(2, Result())

    def leave(inner_step: int, outer: OuterLoop) -> None:
        if inner_step == 9:
            swarm.hub.kill(name(0))
            gone.set()
            raise KilledError

    def stay(inner_step: int, outer: OuterLoop) -> None:
        if inner_step == 10:  # so before a round: who misses one is ahead of the others from then on
            assert gone.wait(30)
            assert late_one.started.wait(30)

    def late() -> None:
        assert gone.wait(30)
        swarm.train(2, 32, founder=False, expected_peers=1)

    in_parallel(
        [
            lambda: swarm.train(0, 40, each=leave, round_policy=RoundPolicy(deadline_s=0.5)),
            lambda: swarm.train(1, 32, each=stay),
            late,
        ],
        swarm.results,
        [0, 1, 2],
    )
    assert_one_history([swarm.results[1], swarm.results[2]])
    assert swarm.results[1].digest == swarm.results[2].digest


def test_a_joiner_takes_part_in_the_next_round() -> None:
    swarm = Swarm(islands=3, codec=codecs.int8)
    here, late_one = threading.Event(), swarm.results.setdefault(3, Result())

    def each(inner_step: int, outer: OuterLoop) -> None:
        if inner_step == 10:
            here.set()
            assert late_one.started.wait(30)

    def late() -> None:
        assert here.wait(30)
        swarm.train(3, 40, founder=False, expected_peers=1)

    trainers: list[Any] = [lambda i=i: swarm.train(i, 40, each=each) for i in range(3)]
    in_parallel([*trainers, late], swarm.results, [0, 1, 2, 3])
    assert_one_history(list(swarm.results.values()))
    joiner = swarm.results[3]
    assert joiner.how == "replayed"
    assert joiner.reports[0].committed
    assert all(len(report.participants) == 4 for report in joiner.reports)
    assert joiner.reports[0].outer_step == 3  # rounds 1 and 2 were over when it asked
    assert len({result.digest for result in swarm.results.values()}) == 1


def test_a_joiner_takes_the_state_where_replaying_would_cost_more() -> None:
    swarm = Swarm(islands=2, schedule=Schedule(inner_steps=2))
    here, late_one = threading.Event(), swarm.results.setdefault(2, Result())

    def each(inner_step: int, outer: OuterLoop) -> None:
        if inner_step == 10:
            here.set()
            assert late_one.started.wait(30)

    def late() -> None:
        assert here.wait(30)
        swarm.train(2, 14, founder=False, expected_peers=1)

    trainers: list[Any] = [lambda i=i: swarm.train(i, 14, each=each) for i in range(2)]
    in_parallel([*trainers, late], swarm.results, [0, 1, 2])
    assert_one_history(list(swarm.results.values()))
    assert swarm.results[2].how == "snapshot"
    assert len({result.digest for result in swarm.results.values()}) == 1


def test_an_island_that_missed_rounds_replays_them_and_keeps_its_progress() -> None:
    policy = RoundPolicy(deadline_s=0.3, partition="majority")  # where a busy machine sleeps, too
    swarm = Swarm(islands=3, policy=policy, codec=codecs.int8)
    asleep, awake = threading.Event(), threading.Event()

    def each(inner_step: int, outer: OuterLoop) -> None:
        if outer.peer_id == name(2) and inner_step == 6:
            asleep.set()
            assert awake.wait(60)  # three rounds go by
        if outer.peer_id == name(0) and inner_step == 20:
            assert asleep.is_set()
            awake.set()
        if outer.peer_id != name(2) and inner_step == 26:
            back.wait(60)
        if outer.peer_id == name(2) and inner_step == 9:
            back.set()

    back = threading.Event()
    results = swarm.run(steps=40, each=each)
    assert_one_history(list(results.values()))
    late = results[2]
    assert sum(report.adopted for report in late.reports) >= 2
    assert late.tokens_trained == late.tokens_credited + late.tokens_left


def test_a_member_that_leaves_in_order_does_not_count_for_the_majority() -> None:
    swarm = Swarm(islands=2, policy=RoundPolicy(deadline_s=20.0, partition="majority"))
    trainers: list[Any] = [lambda: swarm.train(0, 24), lambda: swarm.train(1, 8)]
    in_parallel(trainers, swarm.results, [0, 1])
    assert_one_history(list(swarm.results.values()))
    stays = swarm.results[0]
    assert [len(report.participants) for report in stays.committed][:2] == [2, 2]
    assert len(stays.committed[-1].participants) == 1
    assert stays.tokens_left == 0


def test_settings_that_differ_are_named_and_harm_nobody() -> None:
    swarm = Swarm(islands=2)
    started, refused = threading.Event(), threading.Event()

    def each(inner_step: int, outer: OuterLoop) -> None:
        if inner_step == 6:
            started.set()
            assert refused.wait(30)

    def other() -> None:
        assert started.wait(30)
        try:
            swarm.train(2, 8, founder=False, expected_peers=1, schedule=Schedule(inner_steps=5))
        finally:
            refused.set()

    trainers: list[Any] = [lambda i=i: swarm.train(i, 12, each=each) for i in range(2)]
    in_parallel([*trainers, other], swarm.results, [0, 1, 2])
    assert_one_history([swarm.results[0], swarm.results[1]])
    error = swarm.results[2].error
    assert isinstance(error, JoinRefusedError)
    assert "shared.schedule.inner_steps: here 5, there 4" in str(error)


def test_another_model_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    swarm = Swarm(islands=1)
    started, refused = threading.Event(), threading.Event()

    def each(inner_step: int, outer: OuterLoop) -> None:
        if inner_step == 6:
            started.set()
            assert refused.wait(30)

    def other() -> None:
        assert started.wait(30)
        model = torch.nn.Linear(3, 3)
        outer = swarm.loop(
            1, model, torch.optim.SGD(model.parameters(), lr=0.1), founder=False, expected_peers=1
        )
        try:
            with pytest.raises(JoinRefusedError, match=r"model: here tensor \['weight', \[3, 3\]\]"):
                outer.start()
        finally:
            refused.set()

    in_parallel([lambda: swarm.train(0, 12, each=each), other], swarm.results, [0, 1])
    assert swarm.results[0].error is None
    assert 1 not in swarm.results
    # the one that stays says it; the other one ends with it
    (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "don't fit together: model: here" in said


class _Misrounding:
    """An outer optimizer with the same settings, on a machine that rounds differently."""

    def __init__(self) -> None:
        self._inner = nesterov()

    @property
    def settings(self) -> dict[str, float | str]:
        return self._inner.settings

    def init(self, anchor: Tensor) -> dict[str, Tensor]:
        return self._inner.init(anchor)

    def step(self, *arguments: Any) -> None:
        self._inner.step(*arguments)
        new_anchor = arguments[3]
        new_anchor.copy_(torch.nextafter(new_anchor, new_anchor + 1))


def test_digests_that_differ_commit_nowhere_and_say_so() -> None:
    swarm = Swarm(islands=2, policy=RoundPolicy(deadline_s=2.0))
    in_parallel(
        [lambda: swarm.train(0, 4), lambda: swarm.train(1, 4, outer_optimizer=_Misrounding())],
        swarm.results,
        [0, 1],
    )
    for result in swarm.results.values():
        assert result.error is None
        report = result.reports[0]
        assert not report.committed
        assert "digests differ" in report.reason
        assert report.outer_step == 0


def test_a_model_that_is_not_finite_sends_nothing() -> None:
    swarm = Swarm(islands=1)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with swarm.loop(0, model, optimizer) as outer:
        for step in range(3):
            train_step(model, optimizer, batch(0, step))
            outer.step(tokens=1)
        with torch.no_grad():
            next(model.parameters())[0, 0] = float("nan")
        with pytest.raises(LossError, match=r"inner step 4: parameter 0.weight is not finite"):
            outer.step(tokens=1)
        assert outer.outer_step == 0


def test_too_few_participants_never_commit() -> None:
    swarm = Swarm(islands=1, policy=RoundPolicy(min_participants=2, deadline_s=0.2))
    result = swarm.run(steps=4)[0]
    assert result.error is None
    assert not result.committed
    assert "needed 2" in result.reports[0].reason
    assert result.tokens_left == result.tokens_trained


@pytest.mark.parametrize("kind", ["part", "mean"])
def test_a_damaged_chunk_is_sent_once_more(kind: str) -> None:
    hurt: set[str] = set()

    def damage_once(message: Message) -> Message:
        place = str(sorted(message.body.items())) + message.kind
        if message.kind != kind or place in hurt:
            return message
        hurt.add(place)
        return Message(message.kind, message.body, damaged(message))

    whole = Swarm(islands=3, codec=codecs.int8).run(steps=12)
    mended = Swarm(islands=3, codec=codecs.int8, lies={1: damage_once}).run(steps=12)
    assert_one_history(list(mended.values()))
    assert hurt
    for island, result in mended.items():
        assert [report.attempts for report in result.reports] == [1, 1, 1]
        assert result.digest == whole[island].digest


def test_whoever_sends_a_chunk_damaged_twice_is_left_out() -> None:
    def damage(message: Message) -> Message:
        hit = message.kind == "part" and message.body["outer_step"] == 2
        return Message(message.kind, message.body, damaged(message)) if hit else message

    swarm = Swarm(islands=3, codec=codecs.int8, lies={1: damage})
    results = list(swarm.run(steps=12).values())
    assert_one_history(results)
    second = next(report for report in results[0].committed if report.outer_step == 2)
    assert set(second.participants) == {name(0), name(2)}
    third = next(report for report in results[0].committed if report.outer_step == 3)
    assert len(third.participants) == 3


def damaged(message: Message) -> bytes:
    payload = bytearray(message.payload)
    payload[len(payload) // 2] ^= 0x10
    return bytes(payload)


class Faulty:
    """A codec that fails a few times, as if there were no memory."""

    def __init__(self, failures: int) -> None:
        self._codec, self._failures = codecs.int8(), failures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)

    def encode(self, values: torch.Tensor, lost: torch.Tensor | None = None) -> Any:
        if self._failures:
            self._failures -= 1
            raise RuntimeError("can't allocate memory")
        return self._codec.encode(values, lost)


def test_an_island_whose_part_breaks_sits_the_round_out() -> None:
    swarm = Swarm(islands=3, codec=codecs.int8, policy=RoundPolicy(deadline_s=1.0))
    works: list[Any] = [lambda i=i: swarm.train(i, 12, codec=Faulty(1 if i == 1 else 0)) for i in range(3)]
    in_parallel(works, swarm.results, [0, 1, 2])
    results = list(swarm.results.values())
    assert_one_history(results)
    broken = [report for report in swarm.results[1].reports if not report.committed]
    assert [("can't allocate memory" in report.reason, report.attempts) for report in broken] == [(True, 1)]
    assert results[0].tokens_credited == results[1].tokens_credited == results[2].tokens_credited
