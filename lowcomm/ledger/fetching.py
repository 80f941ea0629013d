"""Fetch a blob from several peers at once, each piece checked by itself.

Every donor is asked for pieces that nobody else has been asked for, a few at a time, so a fast donor
delivers more. What a donor that dies, lies or falls silent still owes goes to the others; when
nothing else is left to ask for, also what a slow one owes. A piece that doesn't fit the manifest,
which the name of the blob covers, is dropped with whoever sent it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Protocol

from lowcomm.errors import PeerUnreachableError, ProtocolError
from lowcomm.ledger.blobs import MANIFEST, Blobs
from lowcomm.ledger.pieces import PIECE_BYTES, check_manifest, count_pieces, fits
from lowcomm.types import Digest, PeerId

logger = logging.getLogger(__name__)

WINDOW = 8
"""Pieces asked of one donor at a time, at most."""
SLOW = 3.0
"""A piece that takes a donor so many times as long as its neighbours take is asked of another one, too."""


class Target(Protocol):
    """Where pieces go.

    Attributes:
        manifest: the hashes of the pieces, once they are known; checked against the name.
        have: the pieces that are there.
    """

    @property
    def manifest(self) -> bytes | None: ...

    have: set[int]

    def begin(self, manifest: bytes) -> None:
        """The hashes of the pieces are known from here on. Called from a worker thread."""
        ...

    def write(self, index: int, piece: bytes) -> None:
        """A checked piece. Called from a worker thread."""
        ...


class InMemory:
    """A target for what is small enough."""

    def __init__(self, size_bytes: int) -> None:
        self.data = bytearray(size_bytes)
        self.manifest: bytes | None = None
        self.have: set[int] = set()

    def begin(self, manifest: bytes) -> None:
        """See `Target`."""
        self.manifest = manifest

    def write(self, index: int, piece: bytes) -> None:
        """See `Target`."""
        start = index * PIECE_BYTES
        self.data[start : start + len(piece)] = piece


class Fetch:
    """One blob on its way in; run it once.

    Args:
        size_bytes: of the blob, known beforehand: nothing is allocated for what a donor says.
        donors: in the order in which they are asked.
        target: pieces that it has are not asked for.
        deadline_s: a donor that is silent for so long is given up.
        pool: hashes and writes.
    """

    def __init__(
        self,
        blobs: Blobs,
        name: Digest,
        size_bytes: int,
        donors: Sequence[PeerId],
        target: Target,
        deadline_s: float,
        pool: Executor,
    ) -> None:
        self._blobs, self._name, self._size = blobs, name, size_bytes
        self._donors, self._target = list(dict.fromkeys(donors)), target
        self._deadline_s, self._pool = deadline_s, pool
        self._to_ask: list[int] = []
        self._asked: dict[int, tuple[set[PeerId], float]] = {}
        self._took_s = deadline_s
        self._failed: dict[PeerId, str] = {}
        self._liars: set[PeerId] = set()
        self._workers: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Fill the target.

        Raises:
            PeerUnreachableError: the donors together could not deliver it; what came stays in the target.
        """
        if self._target.manifest is None and (manifest := await self._manifest()) is not None:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._target.begin, manifest)
        pieces = range(count_pieces(self._size) if self._size else 0)
        self._to_ask = [index for index in reversed(pieces) if index not in self._target.have]
        if not self._done:
            await self._ask_all()
        if not self._done:
            missing = len(pieces) - len(self._target.have)
            raise PeerUnreachableError(
                f"blob {self._name[:12]} of {self._size} bytes: {missing} of {len(pieces)} pieces missing; "
                + ("; ".join(f"{donor}: {why}" for donor, why in self._failed.items()) or "no donors")
            )

    @property
    def idle(self) -> set[PeerId]:
        """Donors that are gone or were silent, and may be added anew."""
        return set(self._failed) - self._liars

    def add(self, donors: Sequence[PeerId]) -> None:
        """Ask these, too, from now on: they have come, or come back."""
        for donor in donors:
            if donor in self._liars or (donor in self._donors and donor not in self._failed):
                continue
            self._failed.pop(donor, None)
            self._donors = list(dict.fromkeys([*self._donors, donor]))
            if self._workers:
                self._hire(donor)

    async def _ask_all(self) -> None:
        for donor in self._donors:
            if donor not in self._failed:
                self._hire(donor)
        try:
            # a slow donor may still owe what others have delivered; nobody waits for that
            while self._workers and not self._done:
                done, _ = await asyncio.wait(self._workers, return_when=asyncio.FIRST_COMPLETED)
                self._workers -= done
                for task in done:
                    task.result()
        finally:
            for task in self._workers:
                task.cancel()
            await asyncio.gather(*self._workers, return_exceptions=True)
            self._workers.clear()

    def _hire(self, donor: PeerId) -> None:
        # of few pieces none is asked of one donor that another one could send meanwhile
        donors = len(set(self._donors) - set(self._failed))
        window = max(1, min(WINDOW, len(self._to_ask) // (2 * max(1, donors))))
        self._workers |= {asyncio.create_task(self._work(donor)) for _ in range(window)}

    @property
    def _done(self) -> bool:
        return not self._to_ask and not self._asked

    async def _manifest(self) -> bytes | None:
        """The hashes of the pieces, from the first donor that has them; of one piece it is the name."""
        if count_pieces(self._size) == 1:
            return bytes.fromhex(self._name)
        for donor in self._donors:
            reply = await self._blobs.ask(donor, self._name, MANIFEST, 0, self._deadline_s)
            if reply is None:
                self._failed[donor] = "doesn't have it, or is gone"
                continue
            try:
                return check_manifest(reply, self._name, self._size)
            except ProtocolError as error:
                self._liars.add(donor)
                self._fail(donor, str(error))
        return None

    async def _work(self, donor: PeerId) -> None:
        """Ask one donor for one piece after the other, until all are there or it fails."""
        while not self._done and donor not in self._failed:
            index = self._next(donor)
            if index is None:
                self._news.clear()
                try:
                    async with asyncio.timeout(self._patience_s / 2):
                        await self._news.wait()
                except TimeoutError:
                    pass  # perhaps a piece is overdue by now
                continue
            await self._fetch(donor, index)

    @property
    def _patience_s(self) -> float:
        return min(self._deadline_s, SLOW * self._took_s)

    def _next(self, donor: PeerId) -> int | None:
        """A piece to ask this donor for: one that nobody was asked for, or one that is overdue."""
        now_s = asyncio.get_running_loop().time()
        if self._to_ask:
            index = self._to_ask.pop()
            self._asked[index] = ({donor}, now_s)
            return index
        for index, (asked, since_s) in self._asked.items():
            if donor not in asked and now_s - since_s > self._patience_s:
                self._asked[index] = (asked | {donor}, now_s)
                return index
        return None

    async def _fetch(self, donor: PeerId, index: int) -> None:
        loop = asyncio.get_running_loop()
        began_s, offset = loop.time(), index * PIECE_BYTES
        length = min(PIECE_BYTES, self._size - offset)
        piece = await self._blobs.ask(donor, self._name, offset, length, self._deadline_s)
        if index in self._target.have:
            return
        if piece is None:
            return self._fail(donor, "doesn't have it, is gone or silent", index)
        if not await loop.run_in_executor(self._pool, self._keep, index, piece, length):
            self._liars.add(donor)
            return self._fail(donor, f"sent other bytes than piece {index}", index)
        self._target.have.add(index)
        self._blobs.progress_s = loop.time()
        self._asked.pop(index, None)
        self._took_s = loop.time() - began_s
        self._news.set()

    def _keep(self, index: int, piece: bytes, length: int) -> bool:
        manifest = self._target.manifest
        if manifest is None or len(piece) != length or not fits(manifest, index, piece):
            return False
        self._target.write(index, piece)
        return True

    def _fail(self, donor: PeerId, reason: str, index: int | None = None) -> None:
        """Give a donor up; what only it was asked for goes to the others."""
        if donor not in self._failed:
            logger.info("blob %s: %s %s", self._name[:12], donor, reason)
        self._failed.setdefault(donor, reason)
        if index is not None and index in self._asked:
            asked, since_s = self._asked[index]
            self._asked[index] = (asked - {donor}, since_s)
            if not asked - {donor}:
                del self._asked[index]
                self._to_ask.append(index)
        self._news.set()


async def fetch_bytes(
    blobs: Blobs,
    name: Digest,
    size_bytes: int,
    donors: Sequence[PeerId],
    deadline_s: float,
    pool: Executor,
) -> bytearray:
    """The blob `name` of `size_bytes`, from whichever donors have it.

    Raises:
        PeerUnreachableError: they could not deliver it.
    """
    target = await asyncio.get_running_loop().run_in_executor(pool, InMemory, size_bytes)
    await Fetch(blobs, name, size_bytes, donors, target, deadline_s, pool).run()
    return target.data
