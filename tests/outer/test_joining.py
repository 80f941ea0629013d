"""Islands that wait for each other start together. On a virtual clock."""

from __future__ import annotations

import asyncio

from lowcomm.exchanges.loopback import LoopbackExchange, LoopbackHub
from lowcomm.exchanges.shaped import ShapedExchange
from lowcomm.recovery.joining import LINK_PATIENCE_S, Joined
from lowcomm.sim.island import IslandSettings, SimIsland, toy_schedule
from lowcomm.sim.promises import MemoryPromises
from lowcomm.sim.swarm import name
from lowcomm.sim.virtual_time import run_virtually
from tests.outer.test_closing import ONE_WAY_S, Late

SETTINGS = IslandSettings(schedule=toy_schedule(inner_steps=2, num_fragments=1))


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


async def joined_while_others_commit() -> tuple[Joined, SimIsland]:
    """One island trains; what it commits while another one claims its data comes there, too."""
    hub, loop = LoopbackHub(), asyncio.get_running_loop()
    first, late = (
        SimIsland(
            number,
            LoopbackExchange(hub, "run", name(number), founder=number == 0),
            SETTINGS,
            MemoryPromises(),
        )
        for number in range(2)
    )
    training = loop.create_task(first.live(1, lambda: 30.0))
    await asyncio.sleep(5.0)
    chain = late.node.state.chains[0]

    async def claim(num_shards: int) -> None:
        before = chain.outer_step
        while first.node.state.chains[0].outer_step < before + 2:
            await asyncio.sleep(0.1)
        await late.node.catching_up.catch_up(0)
        assert chain.outer_step > before > 0

    late.node.shard_claims.claim = claim  # type: ignore[method-assign]
    await late.node.start()
    joined = await late.node.joining.join(fresh=True, num_shards=0, timeout_s=30.0)
    await late.node.close()
    await training
    return joined, late


def test_what_is_committed_while_the_data_is_claimed_is_in_the_join() -> None:
    joined, late = run_virtually(joined_while_others_commit(), 60.0)
    (position,) = joined.positions
    assert joined.report.entries == joined.report.outer_steps[0] == late.node.state.chains[0].outer_step
    assert position.state.digest == late.node.state.states[0].digest
    assert joined.total_tokens == (late.node.state.chains[0].total_tokens,)
