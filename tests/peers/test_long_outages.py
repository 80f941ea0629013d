"""An outage of any length parts nobody for good: who was met is dialled until it is back. Virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from lowcomm import exchanges
from lowcomm.errors import PeerUnreachableError
from lowcomm.exchanges.base import Message
from lowcomm.exchanges.loopback import LoopbackExchange, LoopbackHub
from lowcomm.peers.acquaintances import FORGET_AFTER_S, MAX_KEPT, REDIAL_LONGEST_S
from lowcomm.sim.island import IslandSettings, SimIsland
from lowcomm.sim.promises import MemoryPromises
from lowcomm.sim.swarm import name
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import Json, PeerId

HEARTBEAT_S = 1.0


class Cut(LoopbackExchange):
    """Its network can be down; the directory has lost all records by the time that it is up again."""

    down = False

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> None:
        if self.down:
            raise PeerUnreachableError(f"{peer}: the network is down")
        await super().connect(peer, addresses)

    async def discover(self) -> Mapping[PeerId, bytes]:
        return {}


class LosesItsHello(LoopbackExchange):
    """The first greeting of each peer is lost, as where it overtakes the news of the link, or damaged."""

    def __init__(self, hub: LoopbackHub, peer: str, changes: dict[str, Json] | None) -> None:
        super().__init__(hub, "run", PeerId(peer), founder=False)
        self._changes = changes
        self.lost: set[PeerId] = set()

    async def send(self, peer: PeerId, message: Message) -> None:
        if message.kind == "hello" and peer not in self.lost:
            self.lost.add(peer)
            if self._changes is not None:
                await super().send(peer, Message("hello", {**message.body, **self._changes}))
            return
        await super().send(peer, message)


async def start(hub: LoopbackHub, number: int, *, founder: bool) -> SimIsland:
    """An island that is up; the one that founds links to nobody by itself."""
    exchange = Cut(hub, "run", name(number), founder=founder)
    island = SimIsland(number, exchange, IslandSettings(heartbeat_s=HEARTBEAT_S), MemoryPromises())
    await island.node.start()
    return island


async def met(hub: LoopbackHub, count: int) -> list[SimIsland]:
    """Islands with links between all of them."""
    islands = [await start(hub, number, founder=number == 0) for number in range(count)]
    await asyncio.sleep(3 * HEARTBEAT_S)
    assert all(len(island.node.peers.live()) == count - 1 for island in islands)
    return islands


def cut_off(hub: LoopbackHub, islands: list[SimIsland], *, down: bool) -> None:
    """Take the network of all islands down, or up again."""
    for island in islands:
        exchange = island.node.links
        assert isinstance(exchange, Cut)
        exchange.down = down
        for peer in exchange.connected() if down else ():
            hub.cut(exchange.peer_id, peer)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (None, []),
        ({"layout": "0" * 64}, ["its greeting came damaged; it is asked for another"]),
        ({"shared": "0" * 64}, ["its greeting came damaged; it is asked for another"]),
    ],
    ids=["lost", "layout", "shared"],
)
def test_a_hello_that_is_lost_or_damaged_costs_no_link(
    changes: dict[str, Json] | None, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        hub = exchanges.hub()
        founder = await start(hub, 0, founder=True)
        exchange = LosesItsHello(hub, name(1), changes)
        late = SimIsland(1, exchange, IslandSettings(heartbeat_s=HEARTBEAT_S), MemoryPromises())
        await late.node.start()
        late.node.peers.post(name(0), Message("state", late.node.peers.own_state().to_json()))
        await asyncio.sleep(3 * HEARTBEAT_S)
        assert exchange.lost == {name(0)}
        assert [peer.id for peer in founder.node.peers.live()] == [name(1)]
        assert [record.getMessage().split(": ")[1] for record in caplog.records] == said
        for island in (founder, late):
            await island.node.close()

    run_virtually(scenario(), 60.0)


@pytest.mark.parametrize("outage_s", [60.0, FORGET_AFTER_S + 60.0, 10 * FORGET_AFTER_S])
def test_islands_meet_again_after_an_outage(outage_s: float) -> None:
    async def scenario() -> None:
        hub = exchanges.hub()
        islands = await met(hub, 3)
        cut_off(hub, islands, down=True)
        await asyncio.sleep(outage_s)
        assert not any(island.node.peers.live() for island in islands)
        cut_off(hub, islands, down=False)
        await asyncio.sleep(REDIAL_LONGEST_S + 2 * HEARTBEAT_S)
        assert all(len(island.node.peers.live()) == 2 for island in islands)
        for island in islands:
            await island.node.close()

    run_virtually(scenario(), 100 * FORGET_AFTER_S)


def test_who_has_said_goodbye_is_forgotten_and_who_has_vanished_is_not() -> None:
    async def scenario() -> None:
        hub = exchanges.hub()
        first, vanishing, leaving = await met(hub, 3)
        await leaving.node.close()
        hub.kill(name(1))
        await vanishing.crash()
        await asyncio.sleep(FORGET_AFTER_S + 60.0)
        assert len(first.node.peers.known) == 1
        back = await start(hub, 1, founder=True)
        await asyncio.sleep(REDIAL_LONGEST_S + 2 * HEARTBEAT_S)
        assert [peer.id for peer in first.node.peers.live()] == [name(1)]
        await first.node.close()
        await back.node.close()

    run_virtually(scenario(), 10 * FORGET_AFTER_S)


def test_so_many_are_remembered_and_no_more() -> None:
    async def scenario() -> None:
        hub = exchanges.hub()
        (first,) = await met(hub, 1)
        for number in range(1, MAX_KEPT + 8):
            island = await start(hub, number, founder=False)
            await asyncio.sleep(3 * HEARTBEAT_S)
            hub.kill(name(number))
            await island.crash()
        await asyncio.sleep(FORGET_AFTER_S + 60.0)
        assert len(first.node.peers.known) == MAX_KEPT
        await first.node.close()

    run_virtually(scenario(), 10 * FORGET_AFTER_S)
