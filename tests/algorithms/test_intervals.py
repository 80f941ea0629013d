"""How many inner steps islands of unlike speed take, against the rule of DyLU written down."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowcomm.algorithms.intervals import MAX_UNLIKE, UNMEASURED, Interval, Speed, next_interval
from lowcomm.algorithms.schedule import Schedule
from lowcomm.errors import ConfigError
from lowcomm.types import PeerId

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")
SPEEDS = {A: Speed(0.1, 64), B: Speed(0.2, 64), C: Speed(0.4, 64)}
MATCHED = Schedule(inner_steps=32, mode="matched")


def steps(schedule: Schedule, speeds: dict[PeerId, Speed]) -> dict[PeerId, int]:
    return {peer: next_interval(schedule, speeds, peer).steps for peer in speeds}


def test_the_fastest_takes_h_and_the_others_in_proportion() -> None:
    assert steps(MATCHED, SPEEDS) == {A: 32, B: 16, C: 8}


def test_a_round_takes_the_seconds_that_are_asked_for() -> None:
    timed = Schedule(inner_steps=32, mode="timed", round_s=8.0)
    assert steps(timed, SPEEDS) == {A: 80, B: 40, C: 20}


def test_a_round_takes_the_tokens_that_are_asked_for() -> None:
    timed = Schedule(inner_steps=32, mode="timed", round_tokens=64 * 70)
    assert steps(timed, SPEEDS) == {A: 40, B: 20, C: 10}


@given(st.lists(st.floats(1e-3, 1e-2), min_size=1, max_size=8), st.integers(1, 500))
def test_matched_is_dylu_up_to_a_quarter_step(steps_s: list[float], inner_steps: int) -> None:
    schedule = Schedule(inner_steps=inner_steps, mode="matched")
    speeds = {PeerId(str(number)): Speed(step_s, 10) for number, step_s in enumerate(steps_s)}
    for peer, speed in speeds.items():
        exact = min(steps_s) / speed.step_s * inner_steps
        assert (
            max(1, math.floor(exact)) <= next_interval(schedule, speeds, peer).steps <= max(1, exact + 0.26)
        )


def test_who_was_not_measured_answers_when_asked() -> None:
    assert next_interval(MATCHED, {A: UNMEASURED, B: UNMEASURED}, A) == Interval(32, 0.0)
    late = next_interval(MATCHED, {**SPEEDS, A: UNMEASURED}, A)
    assert late == Interval(32, 32 * 0.2)  # it is asked when the others' time has passed


def test_an_interval_is_longer_than_the_delay() -> None:
    schedule = Schedule(inner_steps=8, delay=3, mode="matched")
    assert steps(schedule, {A: Speed(0.1, 1), B: Speed(0.8, 1)}) == {A: 8, B: 4}


def test_a_peer_that_claims_too_much_is_not_followed() -> None:
    liar = {**SPEEDS, PeerId("liar"): Speed(1e-9, 64)}
    seconds = next_interval(MATCHED, liar, A).seconds
    assert seconds == pytest.approx(32 * 0.2 / MAX_UNLIKE)
    assert next_interval(MATCHED, liar, A).steps >= 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "fixed", "round_s": 1.0},
        {"mode": "timed"},
        {"mode": "timed", "round_s": 1.0, "round_tokens": 1},
    ],
    ids=["length-of-fixed", "no-length", "two-lengths"],
)
def test_a_length_goes_with_timed(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.round_s, round_tokens: expected"):
        Schedule(inner_steps=4, **wrong)
