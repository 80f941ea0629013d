"""A peer that asks for everything and reads nothing must not fill a donor's memory."""

import asyncio

import pytest

from lowcomm import exchanges
from lowcomm.errors import ProtocolError
from lowcomm.exchanges.base import Message
from lowcomm.exchanges.loopback import LoopbackExchange
from lowcomm.membership.blobs import MAX_OWED, PIECE_BYTES, Blobs
from lowcomm.membership.fields import Fields
from lowcomm.membership.ledger import hash_bytes
from lowcomm.types import PeerId

GREEDY = PeerId("greedy")


class StuckExchange(LoopbackExchange):
    """Its bulk channel is full until `gate` opens."""

    async def send_bulk(self, peer: PeerId, message: Message) -> None:
        await self.gate.wait()


def test_pieces_that_are_not_taken_are_bounded() -> None:
    async def scenario() -> None:
        exchange = StuckExchange(exchanges.hub(), "run", PeerId("donor"), founder=True)
        exchange.gate = asyncio.Event()
        reads = []
        blobs = Blobs(exchange, lambda name, offset, length: reads.append(offset) or bytes(length))
        request = Fields("blob?", {"hash": hash_bytes(b"x"), "offset": 0, "length": PIECE_BYTES})
        for _ in range(MAX_OWED):
            blobs.on_request(GREEDY, request)
        with pytest.raises(ProtocolError, match="not taken"):
            blobs.on_request(GREEDY, request)
        assert len(reads) == MAX_OWED
        blobs.on_request(PeerId("honest"), request)
        exchange.gate.set()
        await asyncio.gather(*blobs._replies)
        blobs.on_request(GREEDY, request)
        await asyncio.gather(*blobs._replies)

    asyncio.run(scenario())
