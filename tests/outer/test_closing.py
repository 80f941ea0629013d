"""An island that closes leaves nothing behind that goes on with a round. On a virtual clock."""

from __future__ import annotations

import asyncio
import logging

import pytest

from lowcomm.exchanges.base import Message
from lowcomm.exchanges.loopback import LoopbackExchange, LoopbackHub
from lowcomm.exchanges.shaped import Fate, ShapedExchange
from lowcomm.sim.island import IslandSettings, SimIsland
from lowcomm.sim.promises import MemoryPromises
from lowcomm.sim.swarm import name
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId

ONE_WAY_S = 0.05
LONG_S = 1000.0


class Late:
    """Messages take their time."""

    def fate(self, sender: PeerId, receiver: PeerId, message: Message, now_s: float) -> Fate:
        return Fate((ONE_WAY_S,))


class Deaf(LoopbackExchange):
    """Nobody takes its farewell."""

    async def send(self, peer: PeerId, message: Message) -> None:
        if message.kind == "state" and message.body["phase"] == "leaving":
            await asyncio.sleep(LONG_S)
        await super().send(peer, message)


async def close_during_rounds(exchange: type[LoopbackExchange], after_s: float) -> float:
    """Two islands train; one breaks off and closes, then the other. Returns how long the first one took."""
    hub, loop, before = LoopbackHub(), asyncio.get_running_loop(), asyncio.all_tasks()

    def make(number: int) -> SimIsland:
        ends = exchange(hub, "run", name(number), founder=number == 0)
        return SimIsland(number, ShapedExchange(ends, Late()), IslandSettings(), MemoryPromises())

    islands = [make(number) for number in range(2)]
    lives = [loop.create_task(island.live(2, lambda: LONG_S)) for island in islands]
    await asyncio.sleep(after_s)
    took_s = []
    for island, life in reversed(list(zip(islands, lives, strict=True))):
        assert all(fragment_round.outer_step > 1 for fragment_round in island.node.rounds)
        life.cancel()
        await asyncio.sleep(0.0)  # what it has begun has its first step
        began_s = loop.time()
        await island.node.close()
        took_s.append(loop.time() - began_s)
        assert all(fragment_round.is_idle for fragment_round in island.node.rounds)
    await asyncio.sleep(1.0)
    left = asyncio.all_tasks() - before
    assert not left, left
    return took_s[0]


@pytest.mark.parametrize("tick", range(30))
def test_no_round_outlives_its_island(tick: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        run_virtually(close_during_rounds(LoopbackExchange, 20.0 + 0.1 * tick), 60.0)
    assert not caplog.records


def test_who_takes_no_farewell_does_not_keep_an_island_from_closing() -> None:
    assert run_virtually(close_during_rounds(Deaf, 20.0), 60.0) < 3.0
