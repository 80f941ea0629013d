"""How fast contributions come in from each peer; the shares of later rosters follow from it."""

from __future__ import annotations

from collections.abc import Mapping

from lowcomm.types import PeerId

MAX_RATE = 1 << 40
"""Bytes per second; more is not believed."""

_LEAST_S = 0.5
"""A transfer that was shorter says more about latency than about bandwidth."""

_KEPT = 0.5
"""Weight of what was known before."""


class Rates:
    """Bytes per second from each peer, averaged over recent transfers."""

    def __init__(self) -> None:
        self._known: dict[PeerId, float] = {}

    @property
    def known(self) -> Mapping[PeerId, int]:
        """As they are announced."""
        return {peer: min(MAX_RATE, max(1, round(rate))) for peer, rate in self._known.items()}

    def note(self, peer: PeerId, size_bytes: int, seconds: float) -> None:
        """`size_bytes` came from `peer` while it had nothing else to send here."""
        if seconds >= _LEAST_S and size_bytes:
            rate = size_bytes / seconds
            self._known[peer] = _KEPT * self._known.get(peer, rate) + (1 - _KEPT) * rate

    def forget(self, peer: PeerId) -> None:
        """A peer is gone."""
        self._known.pop(peer, None)
