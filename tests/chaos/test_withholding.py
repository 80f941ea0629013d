"""A member that withholds data is named and costs the others a stall, not the round. On a virtual clock."""

from __future__ import annotations

import asyncio
import logging
from itertools import pairwise

import pytest

from lowcomm.exchanges.base import Message
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.sim.invariants import broken
from lowcomm.sim.island import IslandSettings, toy_schedule
from lowcomm.sim.swarm import Outcome, SimSwarm, name
from lowcomm.sim.tapes import Tape
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId, TensorSpec

LIAR = 2
BEGINS_S, ENDS_S = 30.0, 70.0  # by then standstills are judged by those before them
EVERYTHING = "everything"


class Withholding:
    """A swarm of three in which one loses some of the messages that it sends, while bytes trickle in."""

    def __init__(self, kinds: set[str]) -> None:
        settings = IslandSettings(
            policy=RoundPolicy(deadline_s=30.0),
            layout=(TensorSpec("weights", (960,)),),
            schedule=toy_schedule(num_fragments=1, delay=0),
            lease_s=5.0,
        )
        self._kinds = kinds
        self._swarm = SimSwarm(3, Tape(1, (), (), quiet_s=ENDS_S + 10.0), settings)
        self._swarm._hub.filter = self._pass
        self._steps: dict[PeerId, int] = {}
        self.commits_s: dict[PeerId, list[float]] = {}

    def _pass(self, sender: PeerId, receiver: PeerId, message: Message) -> bool:
        now_s = asyncio.get_running_loop().time()
        if message.kind == "state" and message.body.get("outer_steps"):
            (step,) = message.body.get("outer_steps")
            if step > self._steps.get(sender, -1):
                self._steps[sender] = step
                self.commits_s.setdefault(sender, []).append(now_s)
        lies = BEGINS_S < now_s < ENDS_S and sender == name(LIAR)
        return not (lies and (EVERYTHING in self._kinds or message.kind in self._kinds))

    async def run(self) -> Outcome:
        trickle = asyncio.ensure_future(self._trickle())
        try:
            return await self._swarm.run()
        finally:
            trickle.cancel()

    async def _trickle(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            for number, (island, _) in self._swarm._lives.items():
                if number != LIAR:
                    island.node.links.traffic.count(name(LIAR), received=1)


@pytest.mark.parametrize(
    "kinds",
    [{"part"}, {"mean"}, {"mean", "blob"}, {"part", "mean", "blob"}, {EVERYTHING}],
    ids=["parts", "means", "all-after-its-parts", "all-data", "all-but-a-byte-per-second"],
)
def test_the_others_go_on(kinds: set[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="lowcomm")
    swarm = Withholding(kinds)
    outcome = run_virtually(swarm.run(), 300.0)
    assert not broken(outcome)
    for number in range(3):
        if number != LIAR:
            commits_s = swarm.commits_s[name(number)]
            assert max(late - early for early, late in pairwise(commits_s)) < 15.0
    told = [record.getMessage() for record in caplog.records]
    assert any(name(LIAR) in line and ("ballot ended" in line or "no message for" in line) for line in told)


def test_one_that_says_it_will_be_ready_and_never_is_costs_ever_less() -> None:
    """Whoever gives up on a round may say that it answers the next; believed each time, it would stop all."""
    settings = IslandSettings(
        policy=RoundPolicy(deadline_s=2.0), schedule=toy_schedule(inner_steps=2, num_fragments=1)
    )
    swarm = SimSwarm(3, Tape(1, (), (), quiet_s=150.0), settings)

    def promise(sender: PeerId, receiver: PeerId, message: Message) -> bool | Message:
        late = asyncio.get_running_loop().time() > BEGINS_S and sender == name(LIAR)
        if late and message.kind == "ready":
            return Message("unready", {**message.body, "answers": 1})
        return not late or message.kind != "unready"

    swarm._hub.filter = promise
    outcome = run_virtually(swarm.run(), 300.0)
    assert not outcome.errors
    for number in {0, 1, 2} - {LIAR}:
        rounds = [report for report in outcome.final[number].reports if report.committed]
        without = [report for report in rounds if len(report.participants) == 2]
        assert len(without) > 80
        waited_for_it = sum(report.round_s > 1.5 for report in without)
        assert waited_for_it < 20  # each of two leaders waits some 1 + log2(80) times
