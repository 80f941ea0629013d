"""An upload rate: whoever sends takes turns, first come first served."""

from __future__ import annotations

import asyncio


class UploadRate:
    """At most `mbit_s` megabits a second; 0 = any number."""

    def __init__(self, mbit_s: float) -> None:
        self._bytes_s = mbit_s * 1e6 / 8
        self._free_s = 0.0

    async def wait(self, size_bytes: int) -> None:
        """Until `size_bytes` may be sent."""
        if self._bytes_s <= 0:
            return
        now_s = asyncio.get_running_loop().time()
        begins_s = max(now_s, self._free_s)
        self._free_s = begins_s + size_bytes / self._bytes_s
        if begins_s > now_s:
            await asyncio.sleep(begins_s - now_s)
