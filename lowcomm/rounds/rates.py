"""How fast contributions come in from each peer; the shares of later rosters follow from it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from lowcomm.types import PeerId

MAX_RATE = 1 << 40
"""Bytes per second; more is not believed."""
_STEPS = 3
"""Of a doubling: a told rate is within 12 % of what it was."""
_LEAST_LOG2, _FIRST, _UNKNOWN = 10, ord("!") + 1, "!"
_LAST = _FIRST + _STEPS * (40 - _LEAST_LOG2)

_LEAST_S = 0.5
"""A transfer that was shorter says more about latency than about bandwidth."""

_KEPT = 0.5
"""Weight of what was known before."""


class Rates:
    """Bytes per second from each peer, averaged over recent transfers."""

    def __init__(self) -> None:
        self._known: dict[PeerId, float] = {}
        self._told: tuple[Collection[PeerId], str] | None = None

    @property
    def known(self) -> Mapping[PeerId, int]:
        """As they are announced."""
        return {peer: min(MAX_RATE, max(1, round(rate))) for peer, rate in self._known.items()}

    def told(self, members: Collection[PeerId]) -> str:
        """A character for each of these, in their order by name; empty if nothing is known of any."""
        if self._told is None or self._told[0] is not members:
            known = self.known
            heard = known.keys() & set(members)
            told = "".join(_character(known.get(peer)) for peer in sorted(members)) if heard else ""
            self._told = members, told
        return self._told[1]

    def note(self, peer: PeerId, size_bytes: int, seconds: float) -> None:
        """`size_bytes` came from `peer` while it had nothing else to send here."""
        if seconds >= _LEAST_S and size_bytes:
            rate = size_bytes / seconds
            self._told = None
            self._known[peer] = _KEPT * self._known.get(peer, rate) + (1 - _KEPT) * rate

    def forget(self, peer: PeerId) -> None:
        """A peer is gone."""
        self._told = None
        self._known.pop(peer, None)


def _character(rate: int | None) -> str:
    if rate is None:
        return _UNKNOWN
    step = round(_STEPS * (math.log2(rate) - _LEAST_LOG2))
    return chr(min(_LAST, max(_FIRST, _FIRST + step)))


def parse_rates(text: str, members: Collection[PeerId]) -> dict[PeerId, float]:
    """What `Rates.told` has told of these members, in bytes per second; nothing where it tells of others."""
    if len(text) != len(members):
        return {}
    return {
        peer: 2.0 ** (_LEAST_LOG2 + (ord(one) - _FIRST) / _STEPS)
        for peer, one in zip(sorted(members), text, strict=True)
        if _UNKNOWN < one <= chr(_LAST)
    }
