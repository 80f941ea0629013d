"""An update that others finish long after its ballot credits each of its contributions once."""

from __future__ import annotations

import asyncio

from lowcomm.exchanges.base import Message
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.sim.invariants import broken
from lowcomm.sim.island import IslandSettings, toy_schedule
from lowcomm.sim.swarm import SimSwarm, name
from lowcomm.sim.tapes import Tape
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId, TensorSpec

STEP = 5
HEALED_AFTER_S = 35.0


def test_each_contribution_is_credited_once_however_many_ballots_came_after_it() -> None:
    """3 accepts and is cut off; 0, 1, 2 contribute anew; then all meet and finish its update."""
    settings = IslandSettings(
        policy=RoundPolicy(deadline_s=2.0, partition="majority"),
        layout=(TensorSpec("weights", (1920,)),),
        schedule=toy_schedule(num_fragments=1),
    )
    swarm = SimSwarm(4, Tape(1, (), (), quiet_s=60.0), settings)
    began_s: list[float] = []
    voted: list[PeerId] = []

    def lose(sender: PeerId, receiver: PeerId, message: Message) -> bool:
        now_s, step = asyncio.get_running_loop().time(), message.body.get("outer_step")
        if began_s and now_s > began_s[0] + HEALED_AFTER_S:
            return True
        cut_off = bool(voted) and name(3) in (sender, receiver)
        if message.kind == "mean" and step == STEP:
            if not began_s:
                began_s.append(now_s)
            return not voted and receiver == name(3)
        if message.kind == "vote" and sender == name(3) and step == STEP and not voted:
            voted.append(sender)
            return False
        return not cut_off

    swarm._hub.filter = lose
    outcome = run_virtually(swarm.run(), 300.0)
    assert voted
    given_up = [report for report in outcome.final[0].reports if not report.committed]
    assert len(given_up) > 1
    assert not broken(outcome)
    for life in outcome.final:
        ledger = sum(entry.tokens_of(name(life.number)) or 0 for entry in life.record.entries)
        assert ledger == life.credited[0] <= life.progress.tokens_trained
