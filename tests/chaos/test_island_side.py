"""All kinds of schedules and restarts, on a virtual clock with faults: the island's side is what ships."""

from __future__ import annotations

import pytest

from lowcomm.algorithms.schedule import Schedule
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.sim.invariants import broken
from lowcomm.sim.island import IslandSettings, SimIsland, toy_schedule
from lowcomm.sim.swarm import simulate
from lowcomm.sim.tapes import PeerFault, Tape, make_tape

SCHEDULES = {
    "eager": toy_schedule(eager=True, delay=2),
    "eager-auto": toy_schedule(eager=True, delay="auto", num_fragments=1),
    "auto": toy_schedule(delay="auto", inner_steps=8),
    "no-delay": toy_schedule(delay=0, merge_alpha=0.0),
    "matched": Schedule(inner_steps=6, num_fragments=2, mode="matched"),
    "matched-auto": Schedule(inner_steps=6, mode="matched", delay="auto", eager=True),
    "timed": Schedule(inner_steps=6, num_fragments=2, mode="timed", round_s=3.0, delay=1),
}


def settings(schedule: Schedule, **changes: object) -> IslandSettings:
    policy = RoundPolicy(deadline_s=2.0, partition="majority")
    given = {"policy": policy, "schedule": schedule, "step_s": lambda number, now_s: 0.3 + 0.1 * number}
    return IslandSettings(**{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 40))])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_every_schedule_keeps_the_promises_under_faults(schedule: Schedule, seed: int) -> None:
    outcome = simulate(3, make_tape(seed, 3, faulty_s=15.0), settings(schedule, save_every=5 * (seed % 2)))
    assert not broken(outcome)


@pytest.mark.parametrize("eager", [False, True], ids=["plain", "eager"])
def test_a_round_that_takes_longer_is_given_more_inner_steps(eager: bool) -> None:
    """With one fragment and no faults, `auto` finds how many steps it takes not to stand still."""

    def waited(delay: int | str, base_delay_s: float) -> SimIsland:
        schedule = toy_schedule(inner_steps=16, num_fragments=1, delay=delay, eager=eager and delay != 0)
        tape = Tape(0, (), (), 50.0, base_delay_s=base_delay_s)
        outcome = simulate(2, tape, settings(schedule, step_s=0.2, policy=RoundPolicy(deadline_s=20.0)))
        assert not broken(outcome)
        return outcome.final[0]

    assert waited(0, 0.2).waited_s > 3.0
    assert sum(report.wait_s for report in waited("auto", 0.2).reports[5:-1]) < 0.1


@pytest.mark.parametrize("schedule", [SCHEDULES["eager"], SCHEDULES["matched"]], ids=["eager", "matched"])
def test_an_island_goes_on_from_its_checkpoint(schedule: Schedule) -> None:
    fault = PeerFault("crash", (1,), start_s=12.3, away_s=4.0)
    outcome = simulate(3, Tape(5, (), (fault,), 20.0), settings(schedule, save_every=4))
    assert not broken(outcome)
    first, second = (life for life in outcome.lives if life.number == 1)
    assert not first.side.resumes
    assert second.side.resumes
    assert second.progress.tokens_trained > first.progress.tokens_trained >= first.credited[0] > 0
    assert not second.record.snapshots  # what it has missed was replayed
    assert second.progress.tokens_dropped == 0


def test_all_go_on_from_their_checkpoints_when_all_have_died() -> None:
    fault = PeerFault("crash", (0, 1, 2), start_s=12.3, away_s=3.0)
    given = settings(SCHEDULES["eager"], save_every=5, policy=RoundPolicy(deadline_s=2.0))
    outcome = simulate(3, Tape(5, (), (fault,), 20.0), given)
    assert not broken(outcome)
    second = [life for life in outcome.lives if life.side.resumes]
    assert sorted(life.number for life in second) == [0, 1, 2]
    assert all(life.reports[-1].outer_step > 4 for life in second)


@pytest.mark.parametrize("mode", ["fixed", "matched"])
def test_last_rounds_leave_no_work_behind(mode: str) -> None:
    schedule = Schedule(inner_steps=6, num_fragments=2, mode=mode)  # type: ignore[arg-type]
    outcome = simulate(3, Tape(0, (), (), 15.0), settings(schedule, finishes=True, step_s=0.4))
    assert not broken(outcome)
    for life in outcome.final:
        assert life.progress.tokens == [0, 0]
        assert life.credited == [life.progress.tokens_trained] * 2
    assert len({life.node.state.digest for life in outcome.final}) == 1
