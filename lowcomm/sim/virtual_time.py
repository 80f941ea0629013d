"""An asyncio loop whose clock jumps: whenever nothing can run, it is the next timer's time.

So an hour of heartbeats and deadlines passes in a second, and a run depends on nothing but its
inputs: one thread, no socket, work of thread pools done on the spot.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class HungError(Exception):
    """Nothing is left to run and no timer is set, or the virtual time is used up."""


class _JumpingSelector(selectors.SelectSelector):
    """Never waits: instead of `timeout` seconds passing, the clock is put forward by as much."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise HungError("every task waits for another, and no timer is set")
        self.now_s += max(0.0, timeout)
        return []  # no file is ever ready: there are no sockets


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._jumping.now_s


def run_virtually(main: Coroutine[Any, Any, T], limit_s: float) -> T:
    """Run a coroutine to its end on a virtual clock.

    Raises:
        HungError: it was not done after `limit_s` virtual seconds.
    """
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(_limited(main, limit_s))
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()


async def _limited(main: Coroutine[Any, Any, T], limit_s: float) -> T:
    task = asyncio.get_running_loop().create_task(main)
    done, _ = await asyncio.wait([task], timeout=limit_s)
    if not done:
        raise HungError(f"not done after {limit_s:g} virtual seconds")
    return task.result()
