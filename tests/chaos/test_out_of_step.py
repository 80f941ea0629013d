"""Two halves that were apart, neither of which may commit, and then train at unlike speed: when they see each
other again they are due at other times, for other fragments, and further apart than a deadline."""

import pytest

from lowcomm.rounds.policy import RoundPolicy
from lowcomm.sim.invariants import broken
from lowcomm.sim.island import IslandSettings, toy_schedule
from lowcomm.sim.swarm import SimSwarm
from lowcomm.sim.tapes import PeerFault, Tape
from lowcomm.sim.virtual_time import run_virtually

APART_S, TOGETHER_S = 10.0, 25.0


def step_s(island: int, now_s: float) -> float:
    return 0.6 if island >= 2 and APART_S <= now_s < TOGETHER_S else 0.4


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "unheard"])
@pytest.mark.parametrize("fragments", [1, 2])
def test_halves_of_a_swarm_meet_again(fragments: int, heard: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Also where nobody hears that others have given up: whoever is in a roster then says so."""
    settings = IslandSettings(
        policy=RoundPolicy(deadline_s=2.0, partition="majority"),
        schedule=toy_schedule(inner_steps=40, num_fragments=fragments),
        step_s=step_s,
    )
    split = PeerFault("partition", (0, 1), APART_S, TOGETHER_S - APART_S)
    swarm = SimSwarm(4, Tape(1, (), (split,), quiet_s=TOGETHER_S + 5.0), settings)
    swarm._hub.filter = lambda sender, receiver, message: heard or message.kind != "unready"
    caplog.set_level("INFO", "lowcomm.outer")
    outcome = run_virtually(swarm.run(), 120.0)
    assert not broken(outcome)
    assert "nothing came" not in caplog.text  # no roster was waited for in vain
