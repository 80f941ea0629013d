"""How many inner steps a round is given."""

from __future__ import annotations

from lowcomm.outer.auto_delay import AutoDelay


def delay(rounds_s: list[float], step_s: float = 0.1, most: int = 99) -> int:
    room = AutoDelay()
    for round_s in rounds_s:
        room.round_took(round_s)
    return room.delay(step_s, most)


def test_rounds_fit_with_a_quarter_to_spare() -> None:
    assert delay([0.8] * 8) == 10
    assert delay([0.81] * 8) == 11
    assert delay([0.8] * 8, step_s=0.4) == 3


def test_while_few_are_known_there_is_more_to_spare() -> None:
    assert delay([0.8]) == 18
    assert delay([0.8] * 2) == 14
    assert delay([0.8] * 5) == 12


def test_the_slowest_of_the_last_rounds_counts() -> None:
    assert delay([0.2] * 6 + [0.8, 0.2]) == 10
    assert delay([0.8] + [0.2] * 8) == 3


def test_a_result_is_used_before_the_fragment_is_due_again() -> None:
    assert delay([100.0], most=29) == 29


def test_before_anything_is_known_half_of_the_room_is_given() -> None:
    assert delay([]) == 49
    assert delay([], most=0) == 0
    assert delay([0.8], step_s=0.0, most=10) == 5
