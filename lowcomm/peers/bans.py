"""Who is out of the run, and for how long.

A peer that was put out may have been mended since: it may come back after a while, and is out for
twice as long each further time, so that one that goes on lying costs rounds ever more rarely. Its
rejections are not forgotten before a round with it has committed: the next one puts it out at once.
Each peer decides this for itself. Where two disagree for a moment, ballots with the peer in question
end, and are formed again without it; nothing forks.

Until that committed round, too, nobody follows a history that such a peer has alone (*probation*): it may
have gone on by itself meanwhile, and be further ahead than the run. Each peer says whom it has put out, so
that a newcomer, which has put out nobody, doesn't follow that history either, and lead the others onto it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lowcomm.types import PeerId

BAN_S = 3_600.0


@dataclass(frozen=True, slots=True)
class _Ban:
    reason: str
    until_s: float


class Bans:
    """The peers that one peer has put out.

    Args:
        first_s: seconds that a peer is out for the first time; 0 = for good.

    Attributes:
        probation: peers that may come back, and have been in no committed round since.
    """

    def __init__(self, first_s: float = BAN_S) -> None:
        self._first_s = first_s
        self._bans: dict[PeerId, _Ban] = {}
        self._times: dict[PeerId, int] = {}
        self.probation: set[PeerId] = set()

    def __contains__(self, peer: object) -> bool:
        return peer in self._bans

    def add(self, peer: PeerId, reason: str, now_s: float) -> None:
        """Put a peer out, for twice as long as the last time."""
        times = self._times.get(peer, 0)
        self._times[peer] = times + 1
        out_s = self._first_s * 2.0 ** min(times, 64) if self._first_s else float("inf")
        self._bans[peer] = _Ban(reason, now_s + out_s)
        self.probation.discard(peer)

    def reason(self, peer: PeerId, now_s: float) -> str:
        """Why a peer is out, and for how long still."""
        ban = self._bans[peer]
        if ban.until_s == float("inf"):
            return f"{ban.reason}; it is out until this island restarts"
        return f"{ban.reason}; it is out for {max(0.0, ban.until_s - now_s):.0f} s more"

    def expire(self, now_s: float) -> list[PeerId]:
        """End the bans whose time has come; returns who may come back."""
        over = [peer for peer, ban in self._bans.items() if ban.until_s <= now_s]
        for peer in over:
            del self._bans[peer]
            self.probation.add(peer)
        return over

    def names(self) -> tuple[PeerId, ...]:
        """Who is out or on probation, the latest last."""
        return (*sorted(self.probation), *self._bans)

    def proven(self, peers: Iterable[PeerId]) -> None:
        """A round with these has committed."""
        self.probation.difference_update(peers)
