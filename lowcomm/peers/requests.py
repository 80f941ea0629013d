"""Ask one peer one thing and wait for its answer: `KIND?` out, `KIND` back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from lowcomm.errors import PeerUnreachableError
from lowcomm.exchanges.base import Links, Message
from lowcomm.exchanges.fields import Fields
from lowcomm.ledger.blobs import TICK_S
from lowcomm.types import Json, PeerId

STRAGGLERS = 4.0
"""Of several peers that were asked, the last are waited for so many times as long as the first took."""
STRAGGLERS_LEAST_S = 1.0


class Requests:
    """Questions that this peer has asked and that are not answered yet.

    Args:
        deadline_s: longest wait for an answer.
    """

    def __init__(self, links: Links, deadline_s: Callable[[], float]) -> None:
        self._links, self._deadline_s = links, deadline_s
        self._open: dict[tuple[PeerId, str, int], asyncio.Future[Fields | None]] = {}

    async def ask(self, peer: PeerId, kind: str, body: dict[str, Json], fragment: int = -1) -> Fields:
        """The answer.

        Raises:
            PeerUnreachableError: the peer is gone, or silent for a deadline.
        """
        key, deadline_s = (peer, kind, fragment), self._deadline_s()
        future = self._open.get(key)
        if future is None:
            future = self._open[key] = asyncio.get_running_loop().create_future()
        try:
            await self._links.send(peer, Message(f"{kind}?", {**body, "fragment": fragment}))
            async with asyncio.timeout(deadline_s):
                reply = await asyncio.shield(future)
        except TimeoutError as error:
            raise PeerUnreachableError(f"{peer} did not answer within {deadline_s:g} s") from error
        finally:
            self._open.pop(key, None)
        if reply is None:
            raise PeerUnreachableError(f"{peer} is gone")
        return reply

    async def ask_all(
        self, peers: Sequence[PeerId], kind: str, body: dict[str, Json], fragment: int = -1
    ) -> dict[PeerId, Fields]:
        """The answers of those who answer about as soon as the first one does."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        tasks = {asyncio.create_task(self.ask(peer, kind, body, fragment)): peer for peer in peers}
        pending, patience_s = set(tasks), self._deadline_s()
        answers: dict[PeerId, Fields] = {}
        try:
            while pending and (left_s := began_s + patience_s - loop.time()) >= TICK_S:
                done, pending = await asyncio.wait(
                    pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    if isinstance(error := task.exception(), PeerUnreachableError):
                        continue
                    if error is not None:
                        raise error
                    answers[tasks[task]] = task.result()
                    took_s = loop.time() - began_s
                    patience_s = min(patience_s, max(STRAGGLERS_LEAST_S, STRAGGLERS * took_s))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return answers

    def on_reply(self, peer: PeerId, fields: Fields) -> None:
        """An answer; dropped where nobody has asked."""
        fragment = fields.integer("fragment", -1) if fields.has("fragment") else -1
        future = self._open.get((peer, fields.kind, fragment))
        if future is not None and not future.done():
            future.set_result(fields)

    def on_peer_down(self, peer: PeerId) -> None:
        """Stop waiting for its answers."""
        for key, future in self._open.items():
            if key[0] == peer and not future.done():
                future.set_result(None)
