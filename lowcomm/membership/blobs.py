"""Blobs: bytes named by their blake3 hash, served and fetched in pieces.

Encoded updates, and the states that snapshots consist of, move as blobs. The fetcher asks, so it
sets the pace and the size; a donor that dies or lies costs one deadline, and the pieces that
others sent stay. Nothing is allocated for a size the fetcher did not know beforehand.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from lowcomm.errors import PeerUnreachableError, ProtocolError
from lowcomm.exchanges.base import Exchange, Message
from lowcomm.membership.fields import Fields
from lowcomm.membership.ledger import hash_bytes
from lowcomm.types import Digest, Json, PeerId

PIECE_BYTES = 1 << 20
WINDOW = 8
"""Pieces asked for at a time."""

MAX_OWED = 32
"""Pieces held for one peer that asks and does not read; room for some fetches at a time."""

BlobReader = Callable[[Digest, int, int], bytes | None]
"""(hash, offset, length) -> the bytes, or None where this peer doesn't have the blob."""


class Blobs:
    """Serves this peer's blobs and fetches others'."""

    def __init__(self, exchange: Exchange, read: BlobReader) -> None:
        self._exchange = exchange
        self._read = read
        self._waiting: dict[tuple[PeerId, Digest, int], asyncio.Future[bytes | None]] = {}
        self._replies: set[asyncio.Task[None]] = set()
        self._owed: Counter[PeerId] = Counter()

    def on_request(self, peer: PeerId, fields: Fields) -> None:
        """`blob?`: send the piece, or say that there is none.

        Raises:
            ProtocolError: the peer asks for more pieces at a time than it takes.
        """
        if self._owed[peer] >= MAX_OWED:
            raise ProtocolError(f"blob?: {MAX_OWED} pieces were asked for and not taken")
        name, offset = fields.digest("hash"), fields.integer("offset")
        length = fields.integer("length", 1, PIECE_BYTES)
        piece = self._read(name, offset, length)
        self._owed[peer] += 1
        task = asyncio.get_running_loop().create_task(self._reply(peer, name, offset, piece))
        self._replies.add(task)
        task.add_done_callback(self._replies.discard)

    async def _reply(self, peer: PeerId, name: Digest, offset: int, piece: bytes | None) -> None:
        body: dict[str, Json] = {"hash": name, "offset": offset, "found": int(piece is not None)}
        try:
            await self._exchange.send_bulk(peer, Message("blob", body, piece or b""))
        except PeerUnreachableError:
            return  # who asked is gone
        finally:
            self._owed[peer] -= 1
            if not self._owed[peer]:
                del self._owed[peer]

    def on_piece(self, peer: PeerId, fields: Fields, payload: bytes) -> None:
        """`blob`: a piece that was asked for; anything else is dropped."""
        key = (peer, fields.digest("hash"), fields.integer("offset"))
        future = self._waiting.pop(key, None)
        if future is not None and not future.done():
            future.set_result(payload if fields.integer("found", 0, 1) else None)

    async def fetch(self, name: Digest, size: int, donors: Sequence[PeerId], deadline_s: float) -> bytearray:
        """The blob `name` of `size` bytes, from whichever donor has it.

        Raises:
            PeerUnreachableError: no donor delivered it within `deadline_s` a piece.
        """
        reasons = []
        data = bytearray(size)
        missing = list(range(0, size, PIECE_BYTES)) or [0]
        for donor in donors:
            try:
                missing = await self._fetch_from(donor, name, data, missing, deadline_s)
            except ProtocolError as error:
                reasons.append(f"{donor}: {error}")
                continue
            if missing:
                reasons.append(f"{donor}: stopped with {len(missing)} pieces to go")
                continue
            if hash_bytes(data) == name:
                return data
            reasons.append(f"{donor}: sent other bytes than {name[:12]}")
            missing = list(range(0, size, PIECE_BYTES)) or [0]
        raise PeerUnreachableError(f"blob {name[:12]} of {size} bytes: {'; '.join(reasons) or 'no donors'}")

    async def _fetch_from(
        self, donor: PeerId, name: Digest, data: bytearray, missing: list[int], deadline_s: float
    ) -> list[int]:
        """Fill `data` from one donor; returns the offsets that it did not deliver."""
        window = asyncio.Semaphore(WINDOW)

        async def piece(offset: int) -> int | None:
            async with window:
                length = min(PIECE_BYTES, len(data) - offset)
                if length == 0:
                    return None
                got = await self._ask(donor, name, offset, length, deadline_s)
            if got is None:
                return offset
            if len(got) != length:
                raise ProtocolError(f"expected {length} bytes at {offset}, got {len(got)}")
            data[offset : offset + length] = got
            return None

        results = await asyncio.gather(*(piece(offset) for offset in missing), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [offset for offset in results if isinstance(offset, int)]

    async def _ask(
        self, donor: PeerId, name: Digest, offset: int, length: int, deadline_s: float
    ) -> bytes | None:
        key = (donor, name, offset)
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._waiting[key] = future
        try:
            request = Message("blob?", {"hash": name, "offset": offset, "length": length})
            await self._exchange.send(donor, request)
            return await asyncio.wait_for(future, deadline_s)
        except (TimeoutError, PeerUnreachableError):
            return None
        finally:
            self._waiting.pop(key, None)

    def on_peer_down(self, peer: PeerId) -> None:
        """Stop waiting for a peer that is gone."""
        for key in [key for key in self._waiting if key[0] == peer]:
            future = self._waiting.pop(key)
            if not future.done():
                future.set_result(None)
