"""Blobs: values named by the hash of their pieces, served piece by piece.

Encoded updates, and the states that snapshots consist of, move as blobs. The fetcher asks
(`lowcomm.ledger.fetching`), so it sets the pace and the size; a donor holds it back to its own
upload rate for snapshots, so that it goes on training.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Protocol

from lowcomm.errors import PeerUnreachableError, ProtocolError
from lowcomm.exchanges.base import MAX_PAYLOAD_BYTES, Links, Message
from lowcomm.exchanges.fields import Fields
from lowcomm.ledger.pieces import PIECE_BYTES
from lowcomm.ledger.upload_rate import UploadRate
from lowcomm.types import Digest, Json, PeerId

TICK_S = 1e-3
"""A shorter wait is none: a rounding of the clock may never end it."""
MAX_OWED = 32
"""Pieces owed to one peer that asks and does not read; room for some fetches at a time."""


class Blob(Protocol):
    """What can be served."""

    @property
    def manifest(self) -> bytes: ...

    @property
    def paced(self) -> bool:
        """Whether it waits for the upload rate of snapshots."""
        ...

    def read(self, offset: int, length: int) -> bytes | None:
        """Bytes from `offset` on; None where it is gone. Called from a worker thread."""
        ...


class Blobs:
    """Serves this peer's blobs, and hands others' pieces to whoever has asked for them.

    Args:
        find: the blob of a name, or None.
        pool: reads pieces, as they may be on disk.
        upload_rate: of blobs that wait for it.

    Attributes:
        progress_s: when the last piece came that this peer had asked for and that fits, in loop time.
    """

    def __init__(
        self,
        links: Links,
        find: Callable[[Digest], Blob | None],
        pool: Executor,
        upload_rate: UploadRate,
    ) -> None:
        self._links, self._find, self._pool, self._upload_rate = links, find, pool, upload_rate
        self._waiting: dict[tuple[PeerId, Digest, int], asyncio.Future[bytes | None]] = {}
        self._heard_s: dict[PeerId, float] = {}
        self._replies: set[asyncio.Task[None]] = set()
        self._owed: Counter[PeerId] = Counter()
        self.progress_s = 0.0

    # -- serving -----------------------------------------------------------------------------------

    def on_request(self, peer: PeerId, fields: Fields) -> None:
        """`blob?`: send the piece, or say that there is none; offset -1 asks for the manifest.

        Raises:
            ProtocolError: the peer asks for more pieces at a time than it takes.
        """
        if self._owed[peer] >= MAX_OWED:
            raise ProtocolError(f"blob?: {MAX_OWED} pieces were asked for and not taken")
        name, offset = fields.digest("hash"), fields.integer("offset", MANIFEST)
        length = fields.integer("length", 0, PIECE_BYTES)
        self._owed[peer] += 1
        task = asyncio.get_running_loop().create_task(self._reply(peer, name, offset, length))
        self._replies.add(task)
        task.add_done_callback(self._replies.discard)

    async def _reply(self, peer: PeerId, name: Digest, offset: int, length: int) -> None:
        try:
            piece = await self._piece(name, offset, length)
            body: dict[str, Json] = {"hash": name, "offset": offset, "found": int(piece is not None)}
            await self._links.send_bulk(peer, Message("blob", body, piece or b""))
        except PeerUnreachableError:
            return  # who asked is gone
        finally:
            self._owed[peer] -= 1
            if not self._owed[peer]:
                del self._owed[peer]

    async def _piece(self, name: Digest, offset: int, length: int) -> bytes | None:
        blob = self._find(name)
        if blob is None:
            return None
        if offset == MANIFEST:
            return blob.manifest if len(blob.manifest) <= MAX_PAYLOAD_BYTES else None
        if blob.paced:
            await self._upload_rate.wait(length)  # before the piece is read: what waits holds no memory
        return await asyncio.get_running_loop().run_in_executor(self._pool, blob.read, offset, length)

    async def close(self) -> None:
        """Owe nobody anything any more."""
        replies = list(self._replies)
        for task in replies:
            task.cancel()
        await asyncio.gather(*replies, return_exceptions=True)

    # -- asking ------------------------------------------------------------------------------------

    async def ask(
        self, donor: PeerId, name: Digest, offset: int, length: int, deadline_s: float
    ) -> bytes | None:
        """One piece, or the manifest; None where the donor doesn't have it, or is gone.

        A donor is waited for as long as any piece of it comes within `deadline_s`: a slow link is no
        reason to give it up, silence is. A ballot and a catch-up may want the same update at the same time:
        the second one waits for what the first one has asked for.
        """
        loop = asyncio.get_running_loop()
        key = (donor, name, offset)
        while (pending := self._waiting.get(key)) is not None:
            await asyncio.wait([pending], timeout=deadline_s)
            if pending.done() and (piece := pending.result()) is not None:
                return piece
        future: asyncio.Future[bytes | None] = loop.create_future()
        self._waiting[key] = future
        asked_s = loop.time()
        try:
            request = Message("blob?", {"hash": name, "offset": offset, "length": length})
            await self._links.send(donor, request)
            while not future.done():
                heard_s = max(asked_s, self._heard_s.get(donor, 0.0))
                left_s = heard_s + deadline_s - loop.time()
                if left_s < TICK_S:
                    return None
                await asyncio.wait([future], timeout=left_s)
            return future.result()
        except PeerUnreachableError:
            return None
        finally:
            del self._waiting[key]
            if not future.done():
                future.set_result(None)  # whoever else waits asks for itself

    def on_piece(self, peer: PeerId, fields: Fields, payload: bytes) -> None:
        """`blob`: a piece that was asked for; anything else is dropped."""
        self._heard_s[peer] = asyncio.get_running_loop().time()
        future = self._waiting.get((peer, fields.digest("hash"), fields.integer("offset", MANIFEST)))
        if future is not None and not future.done():
            future.set_result(payload if fields.integer("found", 0, 1) else None)

    def on_peer_down(self, peer: PeerId) -> None:
        """Stop waiting for a peer that is gone."""
        self._heard_s.pop(peer, None)
        for key, future in self._waiting.items():
            if key[0] == peer and not future.done():
                future.set_result(None)


MANIFEST = -1
"""The offset that stands for the manifest."""
