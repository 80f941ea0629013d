"""Islands that join at the same time never train on the same part of the data. On a virtual clock."""

from __future__ import annotations

import asyncio

import pytest

from lowcomm.exchanges.base import Message
from lowcomm.exchanges.loopback import LoopbackExchange, LoopbackHub
from lowcomm.exchanges.shaped import Fate, ShapedExchange
from lowcomm.membership.promises import MemoryPromises
from lowcomm.sim.island import IslandSettings, SimIsland
from lowcomm.sim.swarm import name
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId


class Late:
    """Messages take their time, those of one peer longer."""

    def __init__(self, slow: PeerId) -> None:
        self._slow = slow

    def fate(self, sender: PeerId, receiver: PeerId, message: Message, now_s: float) -> Fate:
        return Fate((0.3 if sender == self._slow else 0.05,))


async def join_all(joiners: int, slow: int, apart_s: float) -> dict[int, int]:
    hub, shaper = LoopbackHub(), Late(name(slow))

    def make(number: int) -> SimIsland:
        exchange = LoopbackExchange(hub, "run", name(number), founder=number == 0)
        return SimIsland(number, ShapedExchange(exchange, shaper), IslandSettings(), MemoryPromises())

    async def join(island: SimIsland, after_s: float) -> int:
        await asyncio.sleep(after_s)
        await island.node.start()
        founder = island.number == 0
        report = await island.node.joining.join(fresh=True, alone_ok=founder, num_shards=8, timeout_s=30.0)
        return report.shard

    islands = [make(number) for number in range(joiners + 1)]
    first = await join(islands[0], 0.0)
    others = await asyncio.gather(
        *(join(island, apart_s * island.number) for island in reversed(islands[1:]))
    )
    for island in islands:
        await island.node.close()
    return dict(zip([0, *range(joiners, 0, -1)], [first, *others], strict=True))


@pytest.mark.parametrize("slow", [0, 1, 3])
@pytest.mark.parametrize("apart_s", [0.0, 0.02, 0.1, 0.5])
def test_joiners_at_the_same_time_get_parts_of_their_own(slow: int, apart_s: float) -> None:
    shards = run_virtually(join_all(3, slow, apart_s), 60.0)
    assert sorted(shards.values()) == [0, 1, 2, 3], shards


def test_the_lower_id_keeps_what_two_have_claimed() -> None:
    shards = run_virtually(join_all(2, 5, 0.0), 60.0)
    assert shards == {0: 0, 1: 1, 2: 2}
