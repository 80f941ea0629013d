"""Islands that join at the same time never train on the same part of the data; if two do, both say so.

On a virtual clock.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping

import pytest

from lowcomm.errors import JoinRefusedError
from lowcomm.exchanges.base import Message
from lowcomm.exchanges.loopback import LoopbackExchange, LoopbackHub
from lowcomm.exchanges.shaped import Fate, ShapedExchange
from lowcomm.sim.island import IslandSettings, SimIsland
from lowcomm.sim.promises import MemoryPromises
from lowcomm.sim.swarm import name
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId


class Late:
    """Messages take their time, those of one peer longer."""

    def __init__(self, slow: PeerId) -> None:
        self._slow = slow

    def fate(self, sender: PeerId, receiver: PeerId, message: Message, now_s: float) -> Fate:
        return Fate((0.3 if sender == self._slow else 0.05,))


class Unlike:
    """Each message takes a time of its own, but on one link they come in order."""

    def __init__(self, seed: int, longest_s: float) -> None:
        self._random, self._longest_s = random.Random(seed), longest_s
        self._last_s: dict[tuple[PeerId, PeerId], float] = {}

    def fate(self, sender: PeerId, receiver: PeerId, message: Message, now_s: float) -> Fate:
        link = sender, receiver
        comes_s = max(self._last_s.get(link, 0.0), now_s + self._random.uniform(0.0, self._longest_s))
        self._last_s[link] = comes_s
        return Fate((comes_s - now_s,))


async def join_all(
    joiners: int,
    network: Late | Unlike,
    apart_s: float,
    *,
    num_shards: int = 8,
    set_shards: Mapping[int, int] | None = None,
    stay_s: float = 0.0,
) -> dict[int, int | JoinRefusedError]:
    """The shard of each island, the founder's first; or why it has none."""
    hub = LoopbackHub()

    def make(number: int) -> SimIsland:
        exchange = LoopbackExchange(hub, "run", name(number), founder=number == 0)
        island = SimIsland(number, ShapedExchange(exchange, network), IslandSettings(), MemoryPromises())
        island.node.peers.say(shard=(set_shards or {}).get(number, -1))
        return island

    async def join(island: SimIsland, after_s: float) -> int | JoinRefusedError:
        await asyncio.sleep(after_s)
        await island.node.start()
        try:
            joined = await island.node.joining.join(fresh=True, num_shards=num_shards, timeout_s=30.0)
        except JoinRefusedError as error:
            await island.node.close()
            return error
        return joined.report.shard

    islands = [make(number) for number in range(joiners + 1)]
    first = await join(islands[0], 0.0)
    others = await asyncio.gather(
        *(join(island, apart_s * island.number) for island in reversed(islands[1:]))
    )
    await asyncio.sleep(stay_s)
    shards = dict(zip([0, *range(joiners, 0, -1)], [first, *others], strict=True))
    for island in islands:
        if not isinstance(shards[island.number], JoinRefusedError):
            await island.node.close()
    return shards


@pytest.mark.parametrize("slow", [0, 1, 3])
@pytest.mark.parametrize("apart_s", [0.0, 0.02, 0.1, 0.5])
def test_joiners_at_the_same_time_get_parts_of_their_own(slow: int, apart_s: float) -> None:
    shards = run_virtually(join_all(3, Late(name(slow)), apart_s), 60.0)
    assert sorted(shards.values()) == [0, 1, 2, 3], shards


def test_the_lower_id_keeps_what_two_have_claimed() -> None:
    shards = run_virtually(join_all(2, Late(name(5)), 0.0), 60.0)
    assert shards == {0: 0, 1: 1, 2: 2}


@pytest.mark.parametrize(("apart_s", "longest_s"), [(0.0, 0.0), (0.0, 1.0), (0.03, 0.1)])
def test_twenty_at_once_get_parts_of_their_own(apart_s: float, longest_s: float) -> None:
    network = Unlike(0, longest_s)
    shards = run_virtually(join_all(19, network, apart_s, num_shards=20), 120.0)
    assert sorted(shards.values()) == list(range(20)), shards


def test_more_than_there_are_parts_are_refused_by_name_and_the_others_have_them_all() -> None:
    shards = run_virtually(join_all(7, Unlike(0, 0.2), 0.0, num_shards=5), 120.0)
    claimed = [shard for shard in shards.values() if isinstance(shard, int)]
    refused = [str(shard) for shard in shards.values() if isinstance(shard, JoinRefusedError)]
    assert sorted(claimed) == [0, 1, 2, 3, 4]
    assert len(refused) == 3
    assert all("all 5 shards of the data are claimed by live islands" in message for message in refused)


def test_a_part_that_was_set_is_left_to_whoever_was_told_to_use_it() -> None:
    shards = run_virtually(join_all(3, Unlike(0, 0.2), 0.0, num_shards=8, set_shards={3: 1}), 60.0)
    assert sorted(shards.values()) == [0, 1, 2, 3]
    assert shards[3] == 1


def test_two_on_one_part_both_warn_once_with_the_others_name(caplog: pytest.LogCaptureFixture) -> None:
    network = Unlike(0, 0.1)
    run_virtually(join_all(2, network, 0.5, set_shards={1: 3, 2: 3}, stay_s=20.0), 60.0)
    said = [
        record.getMessage() for record in caplog.records if "train on the same documents" in record.message
    ]
    assert len(said) == 2
    assert all(message.startswith("shard 3 of the data is used by this island and by ") for message in said)
    assert {number for number in (1, 2) if any(name(number) in message for message in said)} == {1, 2}


def test_who_could_not_be_asked_and_has_the_same_part_is_warned_of_when_the_link_is_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Parted:
        """Nothing passes between islands 1 and 2 at first."""

        def fate(self, sender: PeerId, receiver: PeerId, message: Message, now_s: float) -> Fate:
            parted = {sender, receiver} == {name(1), name(2)} and now_s < 25.0
            return Fate(()) if parted else Fate((0.02,))

    shards = run_virtually(join_all(2, Parted(), 0.0, stay_s=90.0), 200.0)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert shards[1] == shards[2] == 1
    assert sum("train on the same documents" in message for message in said) == 2


@pytest.mark.parametrize("greeted", [True, False], ids=["link-broke", "never-greeted"])
def test_what_an_island_has_that_can_not_be_reached_is_taken_last(greeted: bool) -> None:
    async def join() -> list[int]:
        hub, shards = LoopbackHub(), []
        islands = []
        for number in range(3):
            exchange = LoopbackExchange(hub, "run", name(number), founder=number == 0)
            island = SimIsland(number, exchange, IslandSettings(), MemoryPromises())
            islands.append(island)
            if number == 2 and not greeted:
                hub.filter = lambda sender, receiver, message: {sender, receiver} != {name(0), name(2)}
            await island.node.start()
            if number == 2 and greeted:
                while len(island.node.peers.live()) < 2:
                    await asyncio.sleep(0.01)
                hub.filter = lambda sender, receiver, message: {sender, receiver} != {name(0), name(2)}
                hub.cut(name(0), name(2))
                while name(0) in island.node.peers.linked:
                    await asyncio.sleep(0.01)
            joined = await island.node.joining.join(fresh=True, num_shards=3, timeout_s=30.0)
            shards.append(joined.report.shard)
        for island in islands:
            await island.node.close()
        return shards

    assert run_virtually(join(), 120.0) == [0, 1, 2]
