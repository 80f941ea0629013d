"""Tapes for real processes come from their seed alone, and have every kind of fault."""

from collections import Counter

import pytest

from lowcomm.chaos.tape import LOCAL, MID_ROUND, WAN, make_tape


def test_the_same_seed_gives_the_same_tape() -> None:
    assert make_tape(3, 4, 50, 200.0) == make_tape(3, 4, 50, 200.0)
    assert make_tape(3, 4, 50, 200.0) != make_tape(4, 4, 50, 200.0)


@pytest.mark.parametrize("kinds", [LOCAL, WAN, ("kill", "p2pd")], ids=["local", "wan", "two"])
@pytest.mark.parametrize("seed", range(5))
def test_kinds_are_even_and_faults_are_in_order_within_the_time(kinds, seed) -> None:
    tape = make_tape(seed, 4, 100, 300.0, kinds)
    counts = Counter(fault.kind for fault in tape)
    assert len(tape) == 100
    assert set(counts) == set(kinds)
    assert max(counts.values()) - min(counts.values()) <= 1
    times = [fault.at_s for fault in tape]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] < 300.0
    assert {fault.seat for fault in tape} == {0, 1, 2, 3}
    assert {fault.away_s for fault in make_tape(seed, 4, 9, 99.0, kinds, away_s=7.5)} == {7.5}
    assert all((fault.jitter_s > 0) == (fault.kind in MID_ROUND) for fault in tape)
