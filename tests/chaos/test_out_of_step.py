"""Two halves that were apart, neither of which may commit, and then train at unlike speed: when they see each
other again they are due at other times, for other fragments, and further apart than a deadline."""

import pytest

from lowcomm.outer.decision import RoundPolicy
from lowcomm.sim.invariants import broken
from lowcomm.sim.island import IslandSettings
from lowcomm.sim.swarm import simulate
from lowcomm.sim.tapes import PeerFault, Tape

APART_S, TOGETHER_S = 10.0, 25.0


def step_s(island: int, now_s: float) -> float:
    return 0.6 if island >= 2 and APART_S <= now_s < TOGETHER_S else 0.4


@pytest.mark.parametrize("fragments", [1, 2])
@pytest.mark.parametrize("inner_steps", [20, 40])
def test_halves_of_a_swarm_meet_again(inner_steps: int, fragments: int) -> None:
    settings = IslandSettings(
        policy=RoundPolicy(deadline_s=2.0, partition="majority"),
        inner_steps=inner_steps,
        num_fragments=fragments,
        step_s=step_s,
    )
    split = PeerFault("partition", (0, 1), APART_S, TOGETHER_S - APART_S)
    outcome = simulate(4, Tape(1, (), (split,), quiet_s=TOGETHER_S + 5.0), settings)
    assert not broken(outcome)
