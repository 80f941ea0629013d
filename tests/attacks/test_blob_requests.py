"""A peer that asks for everything and reads nothing must not fill a donor's memory."""

import asyncio

import pytest

from lowcomm import exchanges
from lowcomm.errors import ProtocolError
from lowcomm.exchanges.base import Message
from lowcomm.exchanges.fields import Fields
from lowcomm.exchanges.loopback import LoopbackExchange
from lowcomm.ledger.blobs import MAX_OWED, Blobs
from lowcomm.ledger.entry import hash_bytes
from lowcomm.ledger.pieces import PIECE_BYTES
from lowcomm.ledger.upload_rate import UploadRate
from lowcomm.sim.disk import SimExecutor
from lowcomm.types import PeerId

GREEDY = PeerId("greedy")


class StuckExchange(LoopbackExchange):
    """Its bulk channel is full until `gate` opens."""

    async def send_bulk(self, peer: PeerId, message: Message) -> None:
        await self.gate.wait()


class Zeros:
    """A blob that notes what is read of it."""

    manifest, paced = b"", False

    def __init__(self, reads: list[int]) -> None:
        self._reads = reads

    def read(self, offset: int, length: int) -> bytes:
        self._reads.append(offset)
        return bytes(length)


def test_pieces_that_are_not_taken_are_bounded() -> None:
    async def scenario() -> None:
        exchange = StuckExchange(exchanges.hub(), "run", PeerId("donor"), founder=True)
        exchange.gate = asyncio.Event()
        reads = []
        blobs = Blobs(exchange, lambda name: Zeros(reads), SimExecutor(), UploadRate(0))
        request = Fields("blob?", {"hash": hash_bytes(b"x"), "offset": 0, "length": PIECE_BYTES})
        for _ in range(MAX_OWED):
            blobs.on_request(GREEDY, request)
        with pytest.raises(ProtocolError, match="not taken"):
            blobs.on_request(GREEDY, request)
        blobs.on_request(PeerId("honest"), request)
        exchange.gate.set()
        await asyncio.gather(*blobs._replies)
        assert len(reads) == MAX_OWED + 1
        blobs.on_request(GREEDY, request)
        await asyncio.gather(*blobs._replies)

    asyncio.run(scenario())
