"""The island's side of a round by hand: requests come out, answers go in, and nobody waits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from lowcomm.algorithms.fragments import make_fragments
from lowcomm.algorithms.intervals import Speed
from lowcomm.algorithms.outer_optimizers.nesterov import nesterov
from lowcomm.algorithms.schedule import Schedule
from lowcomm.codecs import fp32
from lowcomm.islands.vectors import HostVector
from lowcomm.ledger.state import OuterState, Position
from lowcomm.outer.island_side import IslandSide, Look, Request, Send, Steps, Tell, Wait
from lowcomm.outer.outcome import Landing, Movement, Outcome
from lowcomm.rounds.values import Call
from lowcomm.sim.island import ToyModel
from lowcomm.types import Digest, PeerId, RoundReport, TensorSpec
from tests.clocks import HandClock

LAYOUT = (TensorSpec("first", (8,)), TensorSpec("second", (4,)))
ME = PeerId("me")
QUIET = Call(ahead=False, ready=False)


def make_side(schedule: Schedule) -> tuple[IslandSide, ToyModel, list[Position]]:
    model = ToyModel(LAYOUT, 1)
    fragments = make_fragments(LAYOUT, schedule.num_fragments, "balanced")
    anchors = [model.read(fragment.tensors) for fragment in fragments]
    state = OuterState("run", fragments, anchors, nesterov(0.7, 0.6), fp32())
    standing = [state.position(fragment.index) for fragment in fragments]
    return IslandSide(model, fragments, schedule, nesterov(0.7, 0.6), HandClock(), standing), model, standing


def drive(steps: Steps[Any], answers: Mapping[type, Any]) -> tuple[list[Request], Any]:
    """All requests, and what the steps return; an answer may be a function of the request."""
    asked: list[Request] = []
    answer = None
    while True:
        try:
            asked.append(steps.send(answer))
        except StopIteration as done:
            return asked, done.value
        given = answers.get(type(asked[-1]))
        answer = given(asked[-1]) if callable(given) else given


def outcome(standing: Position, **changes: Any) -> Outcome:
    """A round that committed what was sent, with an outer step of 1."""
    anchor = standing.state.anchor
    after = HostVector(anchor.load() + 1.0)
    given = {
        "outer_step": 1, "fragment": 0, "committed": True, "reason": "", "participants": (ME,), "attempts": 1,
        "form_s": 0.1, "transfer_s": 0.2, "tokens": 30, "round_tokens": 30, "compression_ratio": 1.0,
        "pseudo_gradient_norm": 1.0, "mean_norm": 1.0, "cosine": None, "adopted": 0, "digest": Digest("d"),
        "head": Digest("h"), "total_tokens": 30,
    }  # fmt: skip
    report = RoundReport(**{**given, **changes})
    landing = Landing(report, True, False, ME, 3, {ME: Speed(1.0, 10)}, 0.0)
    values = HostVector(torch.zeros_like(anchor.load())) if report.committed else None
    moved = Movement(anchor, anchor, after if report.committed else anchor, values)
    return Outcome(landing, moved, standing)


def kinds(asked: list[Request]) -> list[str]:
    return [type(request).__name__ for request in asked]


def test_a_round_is_begun_when_due_and_landed_after_the_delay() -> None:
    side, model, (standing,) = make_side(Schedule(inner_steps=3, delay=1))
    answers = {Look: (QUIET,), Wait: outcome(standing)}
    asked, reports = [], []
    for _ in range(4):
        model.train()
        requests, ended = drive(side.step(10), answers)
        asked.append(kinds(requests))
        reports.append(ended)
    assert asked == [
        ["Tell", "Look"],
        ["Tell", "Look"],
        ["Tell", "Look", "Tell", "Send"],
        ["Tell", "Look", "Wait"],
    ]
    assert [len(ended) for ended in reports] == [0, 0, 0, 1]
    (report,) = reports[-1]
    assert (report.committed, report.inner_steps, report.next_inner_steps) == (True, 3, 3)
    assert (side.progress.tokens_credited, side.progress.tokens) == (30, [10])


def test_what_is_sent_is_the_anchor_less_the_local_parameters() -> None:
    side, model, (standing,) = make_side(Schedule(inner_steps=1))
    model.train()
    local = model.values.clone()
    asked, _ = drive(side.step(10), {Look: (QUIET,), Wait: outcome(standing, tokens=10)})
    (sent,) = [request for request in asked if isinstance(request, Send)]
    assert sent.standing is standing
    assert sent.contribution.tokens == 10
    assert torch.equal(sent.contribution.values, standing.state.anchor.load() - local)
    assert torch.equal(model.values, standing.state.anchor.load() + 1.0)  # nobody has trained meanwhile


@pytest.mark.parametrize("ahead", [False, True], ids=["in-step", "others-are-ahead"])
def test_a_round_that_others_have_had_without_this_island_is_begun_at_once(ahead: bool) -> None:
    side, model, _ = make_side(Schedule(inner_steps=5, delay=2))
    model.train()
    asked, _ = drive(side.step(10), {Look: (Call(ahead=ahead, ready=ahead),)})
    assert ("Send" in kinds(asked)) is ahead


def test_while_it_waits_it_begins_what_others_are_ready_for() -> None:
    side, model, standing = make_side(Schedule(inner_steps=4, num_fragments=2, mode="matched"))
    waits: list[Wait] = []

    def wait(request: Wait) -> Outcome | int:
        waits.append(request)
        if len(waits) == 1:
            return request.others[0]
        return outcome(standing[request.fragment], fragment=request.fragment)

    for _ in range(2):
        model.train()
        asked, reports = drive(side.step(10), {Look: (QUIET, QUIET), Wait: wait})
    assert [request.fragment for request in asked if isinstance(request, Send)] == [0, 1]
    assert [(request.fragment, request.others) for request in waits] == [(0, (1,)), (0, ()), (1, (0,))]
    assert [report.fragment for report in reports] == [0, 1]


def test_a_round_that_came_to_nothing_leaves_the_parameters_and_is_made_up_for() -> None:
    side, model, (standing,) = make_side(Schedule(inner_steps=2))
    aborted = outcome(
        standing, committed=False, tokens=0, outer_step=0, participants=(), round_tokens=0, total_tokens=0
    )
    for _ in range(2):
        model.train()
        trained = model.values.clone()
        drive(side.step(10), {Look: (QUIET,), Wait: aborted})
    assert torch.equal(model.values, trained)
    assert (side.progress.tokens, side.progress.realign) == ([20], [True])
    model.train()
    asked, _ = drive(side.step(10), {Look: (Call(ahead=False, ready=True),), Wait: outcome(standing)})
    assert [request.contribution.tokens for request in asked if isinstance(request, Send)] == [30]
    assert side.progress.realign == [False]


def test_what_is_told_is_one_value_with_all_that_was_told_before() -> None:
    side, _, _ = make_side(Schedule(inner_steps=9))
    told = [request.posted for request in drive(side.show_loss(2.5), {})[0] if isinstance(request, Tell)]
    told += [r.posted for r in drive(side.step(10), {Look: (QUIET,)})[0] if isinstance(r, Tell)]
    assert [(posted.inner_step, posted.loss) for posted in told] == [(0, 2.5), (1, 2.5)]


def test_a_rank_without_a_node_takes_the_leads_answers() -> None:
    """It yields the same requests, gets no answers, and does what the lead broadcasts."""
    side, model, (standing,) = make_side(Schedule(inner_steps=1))
    told: list[Any] = []
    model.broadcast = lambda value: told.append(value) or value  # type: ignore[method-assign, func-returns-value]
    drive(side.step(10), {Look: (QUIET,), Wait: outcome(standing, tokens=10)})
    leads, other = list(told), ToyModel(LAYOUT, 1)
    fragments = make_fragments(LAYOUT, 1, "balanced")
    other.broadcast = lambda value: leads.pop(0)  # type: ignore[method-assign]
    other.add = other.write = lambda indices, values: None  # type: ignore[method-assign]
    rank = IslandSide(other, fragments, Schedule(inner_steps=1), nesterov(0.7, 0.6), HandClock(), ())
    asked, reports = drive(rank.step(10), {})
    assert not leads
    assert "Send" not in kinds(asked)
    assert reports[0].committed
    assert rank.progress.state_dict() == side.progress.state_dict()
