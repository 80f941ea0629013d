"""An island that freezes in the middle of a round costs the others seconds. On a virtual clock."""

from __future__ import annotations

import asyncio

import pytest

from lowcomm.exchanges.base import Message
from lowcomm.peers.failure_detector import WARM_UP, AdaptiveTimeout
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.sim.invariants import broken
from lowcomm.sim.island import IslandSettings, toy_schedule
from lowcomm.sim.swarm import SimSwarm, name
from lowcomm.sim.tapes import Tape
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId, TensorSpec

DEADLINE_S = 60.0
FROZEN_S = 12.0
MOMENTS = {
    "the-leader-after-its-roster": "roster",
    "a-participant-that-is-ready": "ready",
    "a-participant-that-is-sending": "part",
    "a-reducer": "mean",
    "a-voter": "vote",
}


@pytest.mark.parametrize("victim", [0, 2], ids=["the-bootstrap-peer", "another"])
@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS.keys())
def test_the_others_commit_within_five_seconds(moment: str, victim: int) -> None:
    settings = IslandSettings(
        policy=RoundPolicy(deadline_s=DEADLINE_S, partition="majority"),
        layout=(TensorSpec("weights", (960,)),),
        schedule=toy_schedule(num_fragments=1),
        lease_s=5.0,
    )
    swarm = SimSwarm(3, Tape(1, (), (), quiet_s=60.0), settings)
    frozen_s: list[float] = []
    committed_s: dict[PeerId, float] = {}
    steps: dict[PeerId, int] = {}

    def freeze(sender: PeerId, receiver: PeerId, message: Message) -> bool:
        now_s = asyncio.get_running_loop().time()
        if frozen_s and now_s < frozen_s[0] + FROZEN_S and name(victim) in (sender, receiver):
            return False
        if message.kind == "state":
            step = message.body.get("outer_steps", [])
            assert isinstance(step, list)
            if frozen_s and step and step[0] > steps.get(sender, step[0]):
                committed_s.setdefault(sender, now_s)
            steps[sender] = max([steps.get(sender, 0), *step])
        if not frozen_s and now_s > 30.0 and message.kind == moment and sender == name(victim):
            frozen_s.append(now_s)
        return True

    swarm._hub.filter = freeze
    outcome = run_virtually(swarm.run(), 200.0)
    assert not broken(outcome)
    others = [name(number) for number in range(3) if number != victim]
    assert max(committed_s[other] for other in others) - frozen_s[0] < 5.0


def test_a_silence_is_judged_by_those_before_it() -> None:
    pulse = AdaptiveTimeout(2.0, 30.0, 0.0)
    for second in range(1, 5):
        pulse.beat(float(second))
    assert pulse.limit_s == 30.0  # nothing is known yet
    now_s = WARM_UP * 2.0
    pulse.beat(now_s)
    assert pulse.limit_s == 8.0  # twice the four seconds between the last two
    for second in range(600):
        pulse.beat(now_s + second)
    assert pulse.limit_s == 2.0


def test_an_observer_that_stood_still_blames_nobody() -> None:
    pulse = AdaptiveTimeout(2.0, 30.0, 0.0)
    for second in range(100):
        pulse.beat(float(second))
    assert not pulse.look(500.0, longest_step_s=0.5)
    silent = [pulse.look(500.0 + 0.25 * look, longest_step_s=0.5) for look in range(1, 10)]
    assert silent == [False] * 6 + [True] * 3
