"""Who is known when: a joiner decides nothing before it has heard of everybody."""

import asyncio

from lowcomm.membership.fields import Fields
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
