"""A leader that dies while it sends its roster costs nobody the round. On a virtual clock."""

from __future__ import annotations

import asyncio

import pytest

from lowcomm.exchanges.base import Message
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.rounds.roster import leader_order
from lowcomm.sim.invariants import broken
from lowcomm.sim.island import IslandSettings, toy_schedule
from lowcomm.sim.swarm import RUN_ID, SimSwarm, name
from lowcomm.sim.tapes import PeerFault, Tape
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId

ISLANDS = [name(number) for number in range(4)]
OUTER_STEP = 4
FIRST, SECOND, *_ = leader_order(ISLANDS, RUN_ID, 0, OUTER_STEP)


@pytest.mark.parametrize("reached", [peer for peer in ISLANDS if peer != FIRST])
def test_all_who_are_left_are_in_the_next_ballot(reached: PeerId) -> None:
    """One has joined the ballot and takes the others to be in it, too; they have not heard of it."""
    settings = IslandSettings(
        policy=RoundPolicy(deadline_s=60.0), schedule=toy_schedule(num_fragments=1, delay=0)
    )
    swarm = SimSwarm(len(ISLANDS), Tape(1, (), (), quiet_s=30.0), settings)
    died_s: list[float] = []

    def die(sender: PeerId, receiver: PeerId, message: Message) -> bool:
        loop = asyncio.get_running_loop()
        if sender != FIRST or message.kind != "roster" or message.body["outer_step"] != OUTER_STEP:
            return True
        if receiver == reached:
            died_s.append(loop.time())
            fault = PeerFault("crash", (ISLANDS.index(FIRST),), 0.0, 10.0)
            swarm.strikes = [loop.create_task(swarm.strike(fault))]  # type: ignore[attr-defined]
        return receiver == reached

    swarm._hub.filter = die
    outcome = run_virtually(swarm.run(), 100.0)
    assert died_s
    assert not broken(outcome)
    for life in outcome.final:
        if name(life.number) == FIRST:
            continue
        report = next(r for r in life.reports if r.outer_step == OUTER_STEP)
        assert report.round_s < 1.0
        assert len(report.participants) == 3
