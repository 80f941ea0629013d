"""Who is known when, and how far away: a joiner decides nothing before it has heard of everybody."""

import asyncio

import msgpack
import pytest

from lowcomm import exchanges
from lowcomm.errors import ProtocolError
from lowcomm.exchanges.base import Message
from lowcomm.exchanges.fields import Fields
from lowcomm.exchanges.loopback import LoopbackExchange
from lowcomm.exchanges.shaped import Fate, ShapedExchange
from lowcomm.sim.island import IslandSettings, SimIsland
from lowcomm.sim.promises import MemoryPromises
from lowcomm.sim.swarm import name
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId
from tests.attacks.test_greeting import hello, member

FIRST, OTHER = PeerId("first"), PeerId("other")


def test_links_are_being_made_until_every_peer_has_introduced_its_own() -> None:
    async def scenario() -> None:
        peers = member()
        peers.on_peer_up(FIRST)
        assert peers.dialing()
        peers.on_hello(FIRST, hello())
        assert peers.dialing(), "the peers that it knows may hold shards"
        peers.on_peers(FIRST, Fields("peers", {"peers": [[OTHER, []]]}))
        assert peers.dialing(), "the other is being dialled"
        peers.on_peer_up(OTHER)
        peers.on_hello(OTHER, hello())
        peers.on_peers(OTHER, Fields("peers", {"peers": [[FIRST, []]]}))
        await asyncio.sleep(0)  # the dial ends: nobody has that name on this hub
        await asyncio.sleep(0)
        assert not peers.dialing()
        assert {peer.id for peer in peers.live()} == {FIRST, OTHER}
        await peers.stop()

    asyncio.run(scenario())


class Distant:
    """Every message takes 50 ms."""

    def fate(self, sender: PeerId, receiver: PeerId, message: Message, now_s: float) -> Fate:
        return Fate((0.05,))


def test_heartbeats_are_timed_there_and_back() -> None:
    async def scenario() -> None:
        hub = exchanges.hub()
        islands = [
            SimIsland(
                number,
                ShapedExchange(LoopbackExchange(hub, "run", name(number), founder=number == 0), Distant()),
                IslandSettings(heartbeat_s=1.0),
                MemoryPromises(),
            )
            for number in range(2)
        ]
        for island in islands:
            await island.node.start()
        await asyncio.sleep(10.5)
        for island in islands:
            assert list(island.node.peers.heartbeats.round_trips_s) == pytest.approx([0.1] * 10, abs=0.001)
            await island.node.close()

    run_virtually(scenario(), 60.0)


def test_a_round_trip_that_has_not_begun_is_a_broken_protocol() -> None:
    async def scenario() -> None:
        peers = member()
        peers.on_peer_up(FIRST)
        peers.on_hello(FIRST, hello())
        with pytest.raises(ProtocolError, match="expected no time to come"):
            peers.on_pong(
                FIRST, Fields("pong", {"sent_s": asyncio.get_running_loop().time() + 1.0, "knows": ""})
            )
        await peers.stop()

    asyncio.run(scenario())


class DeafExchange(LoopbackExchange):
    """Dials never end, as to a host that is off; the directory still has what it has published."""

    async def connect(self, peer: PeerId, addresses: object) -> None:
        await asyncio.Event().wait()

    async def discover(self) -> dict[PeerId, bytes]:
        return {OTHER: msgpack.packb({"addresses": ["/ip4/192.0.2.1/tcp/9"]})}


def test_a_name_from_the_directory_is_dialled_but_not_waited_for() -> None:
    async def scenario() -> None:
        peers = member(DeafExchange(exchanges.hub(), "run", PeerId("me"), founder=True))
        peers.start()
        peers.on_peer_up(FIRST)
        peers.on_hello(FIRST, hello())
        peers.on_peers(FIRST, Fields("peers", {"peers": []}))
        while len(peers.known) < 2:
            await asyncio.sleep(0)
        assert not peers.dialing()
        peers.on_peers(FIRST, Fields("peers", {"peers": [[OTHER, []]]}))
        assert peers.dialing(), "the first has a link to it, so it lives"
        await peers.stop()

    asyncio.run(scenario())


def test_who_is_gone_is_told_of_no_more_and_dialled_again() -> None:
    async def scenario() -> None:
        peers = member()
        for peer in (FIRST, OTHER):
            peers.on_peer_up(peer)
            peers.on_hello(peer, hello())
        assert {name for name, _ in peers.known.to_json()} == {FIRST, OTHER}
        peers.on_peer_down(OTHER)
        assert [name for name, _ in peers.known.to_json()] == [FIRST]
        assert len(peers.known) == 2
        await peers.stop()

    asyncio.run(scenario())
