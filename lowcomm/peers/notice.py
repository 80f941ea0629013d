"""Wake whoever waits for something to change."""

from __future__ import annotations

import asyncio


class Notice:
    """Like a condition variable without its lock: look, `wait`, look again. One event loop only."""

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def notify(self) -> None:
        """Wake all that wait now."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, timeout_s: float) -> None:
        """Until the next `notify`, but at most `timeout_s` seconds."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await asyncio.wait([waiter], timeout=max(0.0, timeout_s))
        finally:
            waiter.cancel()
            if waiter in self._waiters:
                self._waiters.remove(waiter)
