"""Several ranks are due at the same steps, although only the lead's clock counts."""

import pytest

from lowcomm.algorithms.intervals import Interval, Speed
from lowcomm.algorithms.schedule import Schedule
from lowcomm.outer.pacing import Pacing
from lowcomm.outer.progress import Progress
from lowcomm.types import PeerId
from tests.clocks import HandClock

ME = PeerId("me")


def trained(pacing: Pacing, clock: HandClock, steps: int, step_s: float) -> None:
    for _ in range(steps):
        pacing.step_begins()
        clock.now_s += step_s
        pacing.step_ends(10)


@pytest.mark.parametrize("fragments", [1, 3])
def test_ranks_agree_on_what_is_due(fragments: int) -> None:
    schedule = Schedule(inner_steps=24, num_fragments=fragments, mode="matched")
    clocks = [HandClock(), HandClock()]
    ranks = [Pacing(schedule, fragments, 2, clock) for clock in clocks]
    seen: list[list[tuple[object, ...]]] = [[], []]
    for number, (pacing, clock) in enumerate(zip(ranks, clocks, strict=True)):
        for step in range(1, 100):
            trained(pacing, clock, 1, 0.1 if number == 0 else 0.7)  # the other rank's clock is nonsense
            due = pacing.due(step)
            seen[number].append((due, pacing.looks(step)))
            for fragment in due:
                pacing.begin(fragment, step)
                pacing.take(fragment, Interval(9 + step % 2, 0.9))
                pacing.put_off(step % 3, fragment)
    assert seen[0] == seen[1]
    assert sum(looks for _, looks in seen[0]) > 20


def test_the_speed_is_that_of_the_interval_and_no_checkpoint_counts() -> None:
    clock = HandClock()
    pacing = Pacing(Schedule(inner_steps=8), 1, 1, clock)
    assert pacing.speed(8) == Speed(0.0, 0)
    trained(pacing, clock, 8, 0.1)
    trained(pacing, clock, 4, 0.4)
    clock.now_s += 100.0  # between two steps: a round that was waited for
    trained(pacing, clock, 1, 60.0)  # an evaluation before the step
    trained(pacing, clock, 4, 0.4)
    assert pacing.speed(9) == pytest.approx(Speed(0.4, 10))


def test_who_is_slow_answers_when_the_time_has_passed() -> None:
    clock = HandClock()
    pacing = Pacing(Schedule(inner_steps=8, mode="matched"), 1, 1, clock)
    pacing.take(0, Interval(8, 0.8))
    trained(pacing, clock, 1, 0.4)
    assert not pacing.early(0, True)
    trained(pacing, clock, 1, 0.4)
    assert pacing.early(0, True)
    assert not pacing.early(0, False)  # nobody waits
    assert pacing.due(2) == ()


def test_progress_of_the_swarm_goes_on_between_rounds_but_not_for_ever() -> None:
    progress = Progress(1)
    for _ in range(4):
        progress.trained(10)
    assert progress.swarm_tokens == 40
    progress.committed(0, 100, 4, 4)  # with the others'
    progress.trained(10)
    progress.trained(10)
    assert progress.swarm_tokens == 150
    for _ in range(20):
        progress.trained(10)
    assert progress.swarm_tokens == 200
    progress.committed(0, 180, 0, progress.inner_step)  # taken over from others
    assert progress.swarm_tokens == 180


def test_a_checkpoint_holds_the_interval() -> None:
    pacing = Pacing(Schedule(inner_steps=8, mode="matched"), 1, 1, HandClock())
    pacing.begin(0, 5)
    pacing.take(0, Interval(3, 0.5))
    again = Pacing(Schedule(inner_steps=8, mode="matched"), 1, 1, HandClock())
    again.load_state_dict(pacing.state_dict())
    assert [again.due(step) for step in (7, 8)] == [(), (0,)]
    assert again.steps_of(0) == 3
