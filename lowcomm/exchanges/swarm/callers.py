"""Who may call this peer's DHT handlers, and how often.

In a closed run only peers whose pass this peer has seen, that is, those it has a link with: two peers
link first, and then meet in the DHT. In an open run anybody may, but nobody without end.
"""

from __future__ import annotations

from lowcomm.types import PeerId

CALLS_PER_S = 50.0
BURST_CALLS = 500.0
"""Calls of one peer; an honest one makes a few in every quarter of a minute."""
MAX_COUNTED = 4096
"""Peers whose calls are counted; identities cost nothing, so a flood of them must be bounded."""


class Callers:
    """Decides on each call.

    Args:
        closed: only members may call.

    Attributes:
        members: peers that this one has a link with.
    """

    def __init__(self, *, closed: bool) -> None:
        self._closed = closed
        self.members: set[PeerId] = set()
        self._counted: dict[PeerId, tuple[float, float]] = {}

    def admits(self, peer: PeerId, now_s: float) -> bool:
        """Whether a call is answered; counts it.

        Args:
            now_s: of a clock that only goes forward.
        """
        if self._closed and peer not in self.members:
            return False
        left, counted_s = self._counted.pop(peer, (BURST_CALLS, now_s))
        left = min(BURST_CALLS, left + (now_s - counted_s) * CALLS_PER_S) - 1.0
        if peer not in self.members and len(self._counted) >= MAX_COUNTED:
            del self._counted[next(iter(self._counted))]  # the one that has been quiet for longest
        self._counted[peer] = (max(0.0, left), now_s)
        return left >= 0.0
