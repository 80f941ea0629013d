"""How many inner steps a round is given."""

from __future__ import annotations

from lowcomm.outer.room import Room


class HandClock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return 1.0e9 + self.now_s


def after(steps_s: list[float], rounds_s: list[float], most: int = 99) -> int:
    clock = HandClock()
    room = Room(clock, most)
    for step_s in steps_s:
        room.step_begins()
        clock.now_s += step_s
        room.step_ends()
        clock.now_s += 7.0  # the outer loop's own time, waiting for rounds included, is no part of a step
    for round_s in rounds_s:
        room.round_took(round_s)
    return room.delay


def test_rounds_fit_with_a_quarter_to_spare() -> None:
    assert after([0.1] * 20, [0.8]) == 10
    assert after([0.1] * 20, [0.81]) == 11


def test_the_slowest_of_the_last_rounds_counts() -> None:
    assert after([0.1] * 20, [0.2, 0.8, 0.2]) == 10
    assert after([0.1] * 20, [0.8] + [0.2] * 8) == 3


def test_steps_that_become_slower_are_followed() -> None:
    assert after([0.1] * 20 + [0.4] * 60, [0.8]) == 3


def test_a_result_is_used_before_the_fragment_is_due_again() -> None:
    assert after([0.1] * 20, [100.0], most=29) == 29


def test_before_anything_is_known_half_of_the_room_is_given() -> None:
    assert after([], []) == 49
    assert after([], [], most=0) == 0
