"""Islands that wait for each other start together. On a virtual clock."""

from __future__ import annotations

import asyncio

from lowcomm.exchanges.loopback import LoopbackExchange, LoopbackHub
from lowcomm.exchanges.shaped import ShapedExchange
from lowcomm.recovery.joining import LINK_PATIENCE_S
from lowcomm.rounds.promises import MemoryPromises
from lowcomm.sim.island import IslandSettings, SimIsland
from lowcomm.sim.swarm import name
from lowcomm.sim.virtual_time import run_virtually
from tests.outer.test_closing import ONE_WAY_S, Late


async def started(present: int, expected: int, patience_s: float) -> list[tuple[float, set[str]]]:
    """When each of the islands has joined, and in what phases it sees the others then."""
    hub, loop = LoopbackHub(), asyncio.get_running_loop()

    async def join(number: int) -> tuple[float, set[str]]:
        await asyncio.sleep(0.1 * number)
        exchange = ShapedExchange(LoopbackExchange(hub, "run", name(number), founder=number == 0), Late())
        island = islands[number] = SimIsland(number, exchange, IslandSettings(), MemoryPromises())
        await island.node.start()
        joining = island.node.joining
        await joining.gather(expected, patience_s)
        await joining.join(fresh=True, num_shards=8, timeout_s=30.0)
        return loop.time(), {peer.state.phase for peer in island.node.peers.live()}

    islands: dict[int, SimIsland] = {}
    seen = await asyncio.gather(*(join(number) for number in range(present)))
    for island in islands.values():
        await island.node.close()
    return seen


def test_islands_that_waited_for_each_other_go_on_when_all_have_joined() -> None:
    seen = run_virtually(started(3, 3, 30.0), 60.0)
    assert [phases for _, phases in seen] == [{"training"}] * 3
    times_s = [time_s for time_s, _ in seen]
    assert max(times_s) - min(times_s) <= 2 * ONE_WAY_S


def test_an_island_that_did_not_come_is_not_waited_for_twice() -> None:
    seen = run_virtually(started(2, 3, 10.0), 60.0)
    assert [phases for _, phases in seen] == [{"training"}] * 2
    assert max(time_s for time_s, _ in seen) < 10.0 + LINK_PATIENCE_S
