"""Keeps what waits in this host for one link short, so that nothing waits long behind bulk data.

Bulk data is handed to p2pd only while the kernel holds less than a limit that it has not sent: what it sends
until this process looks again, and no more. That depends on how late it gets to run, which is measured. Who
began a message first goes first, so that messages arrive one after the other, not all at the end.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine
from typing import Any

from lowcomm.exchanges.swarm.connection import DaemonConnection
from lowcomm.exchanges.swarm.uplink import Uplink

MOST_BYTES = 4 << 20
LEAST_PIECE_BYTES, MOST_PIECE_BYTES = 32 << 10, 128 << 10
"""A message is written in pieces, and one piece at least may wait in the kernel: on a slow link more of it
would take a control message longer than the network does."""
LEAST_PAUSE_S, MOST_PAUSE_S = 0.005, 0.04
"""Between two looks: short while there is processor time for it. A piece is what is sent in the shortest."""
_HALF_LIFE_S = 1.0
"""After so long a delay counts half."""


class Backlog:
    """Of one link; call only from the exchange's loop.

    Args:
        connection: asks the kernel; where it knows nothing, nothing is held back.
        uplink: shared by all links.
        spawn: starts a task that ends with the link.
    """

    def __init__(
        self, connection: DaemonConnection, uplink: Uplink, spawn: Callable[[Coroutine[Any, Any, None]], None]
    ) -> None:
        self._connection, self._uplink, self._spawn = connection, uplink, spawn
        self._waiting: list[tuple[int, asyncio.Future[int]]] = []
        self._serving = self._closed = False
        self._messages = 0
        self._late_s, self._pause_s = 0.0, LEAST_PAUSE_S
        self._room = 0.0
        self._piece_bytes = MOST_PIECE_BYTES
        self._looked_s = float("-inf")

    def next_message(self) -> int:
        """The place of a message that begins now."""
        self._messages += 1
        return self._messages

    async def wait_room(self, message: int) -> int:
        """Return when the next piece of a message may be written: how many bytes at most."""
        if self._closed:
            return MOST_PIECE_BYTES
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (message, turn))  # a message waits for one piece at a time
        if not self._serving:
            self._serving = True
            self._spawn(self._serve())
        return await turn

    def close(self) -> None:
        """Hold nobody back any more: the link is down, as who writes will see."""
        self._closed = True
        self._uplink.gone(self)
        for _, turn in self._waiting:
            if not turn.done():
                turn.set_result(MOST_PIECE_BYTES)
        self._waiting.clear()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                if loop.time() - self._looked_s >= self._pause_s:
                    self._look(loop.time(), waited=False)
                while self._room <= 0:
                    await asyncio.sleep(self._pause_s)
                    self._look(loop.time(), waited=True)
                if not self._waiting:
                    break
                _, turn = heapq.heappop(self._waiting)
                if not turn.done():  # done = whoever waited was cancelled
                    turn.set_result(self._piece_bytes)
                    self._room -= self._piece_bytes
                    await asyncio.sleep(0)  # it writes, and asks for its next piece before others get theirs
        finally:
            self._serving = False
            self._uplink.rests(self, loop.time())

    def _look(self, now_s: float, *, waited: bool) -> None:
        passed_s, self._looked_s = now_s - self._looked_s, now_s
        state = None if self._closed else self._connection.look(now_s)
        if state is None:
            self._room = float("inf")
            return
        self._uplink.heard(self, state, now_s)
        paced = self._uplink.rate(self)
        self._connection.pace(paced)
        self._late_s *= 0.5 ** (passed_s / _HALF_LIFE_S)
        if waited:
            self._late_s = max(self._late_s, passed_s - self._pause_s)
        self._pause_s = min(MOST_PAUSE_S, max(LEAST_PAUSE_S, self._late_s / 2))
        limit = 2 * self._pause_s * state.rate
        self._piece_bytes = int(min(MOST_PIECE_BYTES, max(LEAST_PIECE_BYTES, LEAST_PAUSE_S * state.rate)))
        self._room = min(MOST_BYTES, max(self._piece_bytes, limit)) - state.unsent_bytes
