"""What a peer that has a link, but has not greeted, or sends too much, can do: nothing."""

import asyncio

import pytest

from lowcomm import exchanges
from lowcomm.errors import ProtocolError
from lowcomm.membership.fields import Fields
from lowcomm.membership.peers import BURST_MESSAGES, Peers, State
from lowcomm.types import PeerId

STRANGER = PeerId("stranger")


def member() -> Peers:
    exchange = exchanges.loopback(exchanges.hub(), run_id="run", peer_id="me", founder=True)
    return Peers(
        exchange,
        shared={"shared.seed": 1},
        layout=(),
        state=State(phase="training"),
        heartbeat_s=1.0,
        lease_s=10.0,
        on_change=lambda: None,
        on_refused=lambda peer, reasons: None,
    )


def hello(**changes: object) -> Fields:
    body = {"protocol": 1, "shared": {"shared.seed": 1}, "layout": [], "addresses": []}
    state = State(phase="training").to_json()
    return Fields("hello", {**body, "state": state, **changes})


@pytest.mark.parametrize(
    "kind", ["state", "ready", "roster", "vote", "abort", "blob?", "snapshot?", "entries?"]
)
def test_nothing_is_heard_before_hello(kind: str) -> None:
    async def scenario() -> None:
        peers = member()
        peers.on_peer_up(STRANGER)
        with pytest.raises(ProtocolError, match="expected hello first"):
            peers.admit_message(STRANGER, kind)
        peers.on_state(STRANGER, Fields("state", State(phase="training", inner_step=10**9).to_json()))
        assert peers.live() == []
        peers.on_hello(STRANGER, hello())
        peers.admit_message(STRANGER, kind)
        assert [peer.id for peer in peers.live()] == [STRANGER]
        await peers.stop()

    asyncio.run(scenario())


def test_an_island_without_settings_is_refused() -> None:
    async def scenario() -> None:
        peers = member()
        peers.on_peer_up(STRANGER)
        peers.on_hello(STRANGER, hello(shared={}))
        assert peers.live() == []
        await peers.stop()

    asyncio.run(scenario())


def test_a_flood_of_messages_is_a_broken_protocol() -> None:
    async def scenario() -> None:
        peers = member()
        peers.on_peer_up(STRANGER)
        peers.on_hello(STRANGER, hello())
        for _ in range(int(BURST_MESSAGES)):
            peers.admit_message(STRANGER, "state")
        peers.linked[STRANGER].allowance = 0.0  # a burst takes a moment, in which some is given back
        peers.linked[STRANGER].counted_at_s = asyncio.get_running_loop().time()
        with pytest.raises(ProtocolError, match="control messages a second"):
            peers.admit_message(STRANGER, "state")
        await peers.stop()

    asyncio.run(scenario())


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
