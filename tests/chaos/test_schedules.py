"""Seeded fault schedules on a virtual clock, through the production round.

Each schedule runs three or four islands, for half a minute of virtual time or longer. A failure prints the
seed; the tape and the settings of a seed are the same every time.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from lowcomm.algorithms.schedule import Schedule
from lowcomm.exchanges.base import Message
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.sim.invariants import broken
from lowcomm.sim.island import IslandSettings
from lowcomm.sim.swarm import simulate
from lowcomm.sim.tapes import ACTIONS, MessageFault, Tape, TapeShaper, make_tape
from lowcomm.sim.virtual_time import HungError, run_virtually
from lowcomm.types import PeerId
from tests.chaos.seeds import fives

QUICK_SCHEDULES, SCHEDULES, MANY_SCHEDULES = 30, 75, 500
"""Of each kind of partition: short ones in the default run, more and long ones with `-m slow`."""
DEADLINE_S = 3.0
"""More than any delay takes, as users are told."""
ROUND = ("ready", "unready", "roster", "part", "mean", "vote", "abort", "state")
STAGES = [(action, kind) for kind in ROUND for action in ACTIONS]


def settings(partition: str) -> IslandSettings:
    return IslandSettings(policy=RoundPolicy(deadline_s=DEADLINE_S, partition=partition))


def settings_of(seed: int, partition: str) -> IslandSettings:
    """Any schedule, with islands of unlike speed where it is made for them."""
    rng = random.Random(f"settings {seed}")
    inner_steps = rng.choice([2, 5, 12])
    pace = Schedule(
        inner_steps=inner_steps,
        num_fragments=rng.choice([1, 2]),
        delay=rng.choice([0, 1, min(3, inner_steps - 1)]),
        mode=(mode := rng.choice(["fixed", "matched", "timed"])),
        round_s=4.0 if mode == "timed" else 0.0,
    )
    steps_s = [rng.choice([0.2, 0.4, 0.8]) if mode != "fixed" else 0.4 for _ in range(4)]
    return IslandSettings(
        policy=RoundPolicy(deadline_s=DEADLINE_S, partition=partition),
        schedule=pace,
        step_s=lambda island, _: steps_s[island],
        error_feedback=rng.random() < 0.7,
    )


@pytest.mark.parametrize("partition", ["majority", "continue"])
@pytest.mark.parametrize("first", fives(QUICK_SCHEDULES, SCHEDULES))
def test_random_schedules_break_nothing(partition: str, first: int) -> None:
    for seed in range(first, first + 5):
        islands = 3 + seed % 2
        tape = make_tape(seed, islands, faulty_s=12.0, deadline_s=DEADLINE_S)
        problems = broken(simulate(islands, tape, settings_of(seed, partition)))
        assert not problems, (seed, problems)


@pytest.mark.slow
@pytest.mark.parametrize("partition", ["majority", "continue"])
@pytest.mark.parametrize("first", range(0, MANY_SCHEDULES, 5))
def test_long_random_schedules_break_nothing(partition: str, first: int) -> None:
    for seed in range(first, first + 5):
        problems = broken(
            simulate(4, make_tape(seed, 4, deadline_s=DEADLINE_S), settings_of(seed, partition))
        )
        assert not problems, (seed, problems)


@pytest.mark.parametrize(("action", "kind"), STAGES, ids=[f"{a}-{k}" for a, k in STAGES])
def test_every_message_of_a_round_may_fail(action: str, kind: str) -> None:
    fault = MessageFault(action, (kind,), 0.5, 2.0, 12.0, delay_s=3.0)
    outcome = simulate(3, Tape(1, (fault,), (), quiet_s=12.0), settings("majority"))
    assert not broken(outcome)
    assert sum(outcome.struck.values()) > 0 or kind in ("abort", "unready")


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = (simulate(3, make_tape(7, 3), settings("majority")) for _ in range(2))
    assert first.final_heads == second.final_heads
    assert first.struck == second.struck


def test_a_loop_that_waits_for_ever_says_so() -> None:
    async def wait() -> None:
        await asyncio.sleep(100.0)

    with pytest.raises(HungError, match="not done after 50 virtual seconds"):
        run_virtually(wait(), 50.0)


def test_a_fate_depends_on_the_message_only() -> None:
    tape = make_tape(3, 4)
    one, other = TapeShaper(tape), TapeShaper(tape)
    message = Message("vote", {"outer_step": 1})
    other.fate(PeerId("x"), PeerId("y"), message, 5.0)  # an unrelated message goes before
    fates = [shaper.fate(PeerId("a"), PeerId("b"), message, 6.0) for shaper in (one, other)]
    assert fates[0] == fates[1]
