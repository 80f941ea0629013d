"""What a peer that has a link, but has not greeted, or sends too much, can do: nothing."""

import asyncio

import pytest

from lowcomm import exchanges
from lowcomm.errors import PeerUnreachableError, ProtocolError
from lowcomm.exchanges.fields import Fields
from lowcomm.exchanges.loopback import LoopbackExchange
from lowcomm.peers.acquaintances import MAX_DIALS, MAX_KNOWN
from lowcomm.peers.peer import BURST_MESSAGES, State
from lowcomm.peers.table import PROTOCOL, Peers
from lowcomm.peers.terms import Terms
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId

STRANGER = PeerId("stranger")


def member(exchange: LoopbackExchange | None = None) -> Peers:
    return Peers(
        exchange or exchanges.loopback(exchanges.hub(), run_id="run", peer_id="me", founder=True),
        shared={"shared.seed": 1},
        layout=(),
        state=State(phase="training"),
        heartbeat_s=1.0,
        lease_s=10.0,
        on_change=lambda: None,
        on_refused=lambda peer, reasons: None,
    )


def hello(**changes: object) -> Fields:
    digests = Terms({"shared.seed": 1}, ()).digests
    state = State(phase="training").to_json()
    said = {"protocol": PROTOCOL, "greeted": 0, **digests, "addresses": [], "state": state}
    return Fields("hello", {**said, **changes})


@pytest.mark.parametrize(
    "kind", ["peers", "ping", "state", "ready", "roster", "vote", "abort", "blob?", "snapshot?", "entries?"]
)
def test_nothing_is_heard_before_hello(kind: str) -> None:
    async def scenario() -> None:
        peers = member()
        peers.on_peer_up(STRANGER)
        assert not peers.admit_message(STRANGER, kind)
        peers.on_state(STRANGER, Fields("state", State(phase="training", inner_step=10**9).to_json()))
        assert peers.live() == []
        peers.on_hello(STRANGER, hello())
        assert peers.admit_message(STRANGER, kind)
        assert [peer.id for peer in peers.live()] == [STRANGER]
        await peers.stop()

    asyncio.run(scenario())


def test_an_island_without_settings_is_refused() -> None:
    async def scenario() -> None:
        peers = member()
        peers.on_peer_up(STRANGER)
        peers.on_hello(STRANGER, hello(shared=Terms({}, ()).digests["shared"]))
        assert peers.live() == []
        await peers.stop()

    asyncio.run(scenario())


def test_another_protocol_is_refused_when_it_is_said_twice() -> None:
    async def scenario() -> None:
        peers = member()
        for said in ((PROTOCOL + 3, PROTOCOL), (PROTOCOL + 3, PROTOCOL + 3)):
            peers.on_peer_up(STRANGER)
            for protocol in said:
                peers.on_hello(STRANGER, hello(protocol=protocol))
            entry = peers.linked[STRANGER]
            assert entry.greeted == (said[-1] == PROTOCOL)  # the first may have come damaged
            assert entry.unfit != entry.greeted
            peers.on_peer_down(STRANGER)
        await peers.stop()

    asyncio.run(scenario())


def test_a_flood_of_messages_is_a_broken_protocol() -> None:
    async def scenario() -> None:
        peers = member()
        peers.on_peer_up(STRANGER)
        peers.on_hello(STRANGER, hello())
        for _ in range(int(BURST_MESSAGES)):
            assert peers.admit_message(STRANGER, "state")
        with pytest.raises(ProtocolError, match="control messages a second"):
            peers.admit_message(STRANGER, "state")
        await peers.stop()

    run_virtually(scenario(), 1.0)  # a burst takes no time there, in which some would be given back


def test_who_is_out_counts_no_more_and_is_not_let_in_again() -> None:
    async def scenario() -> None:
        peers = member()
        peers.on_peer_up(STRANGER)
        peers.on_hello(STRANGER, hello())
        peers.ban(STRANGER, "it lied")
        assert peers.live() == []
        peers.on_peer_down(STRANGER)
        peers.on_peer_up(STRANGER)
        assert STRANGER not in peers.linked
        await peers.stop()

    asyncio.run(scenario())


def test_bulk_waits_for_hello_and_is_dropped_without() -> None:
    async def scenario() -> None:
        peers = member()
        for peer in (STRANGER, PeerId("silent")):
            peers.on_peer_up(peer)
        early = asyncio.ensure_future(peers.admit_bulk(STRANGER))
        never = asyncio.ensure_future(peers.admit_bulk(PeerId("silent")))
        await asyncio.sleep(0)
        assert not early.done()
        assert not never.done()
        peers.on_hello(STRANGER, hello())
        peers.on_peer_down(PeerId("silent"))
        assert await early
        assert not await never
        assert not await peers.admit_bulk(PeerId("unknown"))
        peers.ban(STRANGER, "it lied")
        assert not await peers.admit_bulk(STRANGER)
        await peers.stop()

    asyncio.run(scenario())


class CountingExchange(LoopbackExchange):
    """Notes how many dials run at a time; nobody can be reached before `gate` opens."""

    gate: asyncio.Event
    dialing = most = tried = 0

    async def connect(self, peer: PeerId, addresses: object) -> None:
        self.dialing, self.tried = self.dialing + 1, self.tried + 1
        self.most = max(self.most, self.dialing)
        await self.gate.wait()
        self.dialing -= 1
        raise PeerUnreachableError(f"{peer}: nobody there")


def test_a_flood_of_invented_peers_is_dialled_a_few_at_a_time_and_not_told_on() -> None:
    async def scenario() -> None:
        exchange = CountingExchange(exchanges.hub(), "run", PeerId("me"), founder=True)
        exchange.gate = asyncio.Event()
        peers = member(exchange)
        peers.on_peer_up(STRANGER)
        peers.on_hello(STRANGER, hello())
        for flood in range(2):
            invented = [[f"peer-{flood}-{number}", ["/ip4/192.0.2.1/tcp/9"]] for number in range(MAX_KNOWN)]
            peers.on_peers(STRANGER, Fields("peers", {"peers": invented}))
        await asyncio.sleep(0)
        assert exchange.most == MAX_DIALS
        assert [name for name, _ in peers.known.to_json()] == [STRANGER]
        exchange.gate.set()
        while exchange.tried < MAX_KNOWN - 1:  # every one once, and the table never grew
            await asyncio.sleep(0)
        assert exchange.most == MAX_DIALS
        assert len(peers.known) <= MAX_KNOWN
        await peers.stop()

    asyncio.run(scenario())
