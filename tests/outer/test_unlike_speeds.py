"""Islands of unlike speed on a virtual clock: the production round, node and pacing, no real time."""

import pytest

from lowcomm.algorithms.schedule import Schedule
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.sim.island import IslandSettings, SimIsland
from lowcomm.sim.swarm import simulate
from lowcomm.sim.tapes import Tape

STEPS_S = (0.1, 0.2, 0.4)
H = 32
SLOWS_AT_S = 20.0


def run(schedule: Schedule, *, seconds: float = 60.0, slower: int | None = None) -> list[SimIsland]:
    """The islands after a run without faults; `slower` takes four times as long from the middle on."""

    def step_s(island: int, now_s: float) -> float:
        return STEPS_S[island] * (4.0 if island == slower and now_s >= SLOWS_AT_S else 1.0)

    settings = IslandSettings(
        policy=RoundPolicy(deadline_s=60.0), schedule=schedule, step_s=step_s, lease_s=30.0
    )
    outcome = simulate(3, Tape(0, (), (), seconds, base_delay_s=0.001), settings)
    assert not outcome.errors
    return outcome.final


def idle(island: SimIsland) -> float:
    return island.waited_s / (island.left_s - island.joined_s)


def pace(island: SimIsland, fragment: int = 0) -> list[int]:
    """Inner steps of its contributions, the last one left out, which the end of the run may cut."""
    return [steps for number, _, steps in island.intervals if number == fragment][:-1]


def test_the_fast_wait_for_the_slowest_where_all_take_the_same_steps() -> None:
    fast, middle, slow = run(Schedule(inner_steps=H))
    assert {*pace(fast), *pace(middle), *pace(slow)} == {H}
    assert idle(fast) > 0.6
    assert 0.4 < idle(middle) < idle(fast)


@pytest.mark.parametrize("fragments", [1, 2])
def test_matched_islands_are_due_together(fragments: int) -> None:
    islands = run(Schedule(inner_steps=H, num_fragments=fragments, mode="matched"))
    for fragment in range(fragments):
        for island, expected in zip(islands, (32, 16, 8), strict=True):
            assert set(pace(island, fragment)[2:]) == {expected}
    assert max(idle(island) for island in islands) < 0.05
    entries = islands[0].record.entries
    assert all(len(entry.participants) == 3 for entry in entries[: -2 * fragments])
    # weights are tokens: 10, 11 and 12 of a step times the steps
    assert [tokens for _, tokens in entries[-2 * fragments].participants] == [32 * 10, 16 * 11, 8 * 12]


def test_rounds_keep_the_time_that_is_asked_for() -> None:
    islands = run(Schedule(inner_steps=8, mode="timed", round_s=4.0))
    assert [set(pace(island)[1:]) for island in islands] == [{40}, {20}, {10}]
    assert max(idle(island) for island in islands) < 0.05


def test_rounds_keep_the_tokens_that_are_asked_for() -> None:
    wanted = 40 * 10 + 20 * 11 + 10 * 12
    islands = run(Schedule(inner_steps=8, mode="timed", round_tokens=wanted))
    assert [set(pace(island)[1:]) for island in islands] == [{40}, {20}, {10}]


@pytest.mark.parametrize("slower", [0, 1, 2], ids=["fastest", "middle", "slowest"])
def test_an_island_that_slows_down_is_followed_within_two_rounds(slower: int) -> None:
    islands = run(Schedule(inner_steps=H, mode="matched"), slower=slower, seconds=80.0)
    steps_s = [STEPS_S[i] * (4.0 if i == slower else 1.0) for i in range(3)]
    expected = [H * min(steps_s) / step_s for step_s in steps_s]
    for island, right in zip(islands, expected, strict=True):
        late = [steps for _, at_s, steps in island.intervals if at_s > SLOWS_AT_S]
        # the round under way, and at most one more, still have the old pace or a mixed one
        assert all(right - 1 < steps <= right + 0.25 for steps in late[2:-1])
        assert len(late) > 8
    assert max(idle(island) for island in islands) < 0.08


def test_without_being_followed_the_others_would_wait() -> None:
    islands = run(Schedule(inner_steps=H), slower=2, seconds=80.0)
    assert idle(islands[0]) > 0.8
