"""What the parts of one fragment's round share: the decision under way, and how to tell others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping

from lowcomm.exchanges.base import Message
from lowcomm.peers.failure_detector import AdaptiveTimeout
from lowcomm.peers.notice import Notice
from lowcomm.rounds.claims import ClaimJudge
from lowcomm.rounds.decision import Context, Decision
from lowcomm.types import Json, PeerId

logger = logging.getLogger(__name__)

STALL_LEAST_S = 5.0
"""A ballot that stands still is never ended sooner, unless somebody is gone or silent."""
PROGRESS_BYTES = 1 << 16
"""So many bytes to or from its participants are progress; signs of life are far less."""


class Topic:
    """One fragment on one peer; call only from the exchange's loop.

    Attributes:
        decision: on the next outer step; replaced when the chain moves.
        contributions: judges those of others.
        changed: notified whenever something happened that a round could care about.
    """

    def __init__(self, context: Context, fragment: int) -> None:
        self.context = context
        self.fragment = fragment
        self.chain = context.state.chains[fragment]
        self.changed = Notice()
        self.contributions = ClaimJudge(context.policy.limits)
        self.decision = Decision(self.chain.outer_step + 1)
        self._pulse: AdaptiveTimeout | None = None
        self._moved_bytes = 0

    @property
    def me(self) -> PeerId:
        return self.context.exchange.peer_id

    def now_s(self) -> float:
        """Loop time."""
        return asyncio.get_running_loop().time()

    def progressed(self) -> None:
        """Note that the ballot under way has moved."""
        now_s = self.decision.progress_s = self.now_s()
        if self._pulse is not None and self.decision.task is not None:
            self._pulse.beat(now_s)

    def began(self) -> None:
        """Note that a ballot is under way."""
        now_s = self.decision.progress_s = self.now_s()
        if self._pulse is None:
            self._pulse = AdaptiveTimeout(STALL_LEAST_S, self.context.policy.deadline_s, now_s)
        self._pulse.resume(now_s)

    def stall_s(self) -> float:
        """How long a ballot may stand still: as judged by earlier ones, at most the deadline."""
        return self._pulse.limit_s if self._pulse is not None else self.context.policy.deadline_s

    def notice_bytes(self, peers: Iterable[PeerId]) -> None:
        """Pieces of chunks are progress, too: a slow link is no stall."""
        by_peer = self.context.exchange.traffic.by_peer
        moved = sum(by_peer.get(peer, 0) for peer in peers)
        if moved - self._moved_bytes >= PROGRESS_BYTES:
            self.progressed()
        if moved - self._moved_bytes >= PROGRESS_BYTES or moved < self._moved_bytes:
            self._moved_bytes = moved

    def reject(self, peer: PeerId, reason: str, accuser: PeerId | None = None) -> None:
        """Leave a peer out of this outer step and tell it why; after too many times it is out.

        Args:
            accuser: who saw it, if not this peer itself.
        """
        if peer == self.me or peer in self.context.peers.banned:
            return
        called = self.context.peers.called(peer)
        logger.warning("fragment %d: contribution of %s rejected: %s", self.fragment, called, reason)
        self.decision.avoid.add(peer)
        self.decision.rejected.add(peer)
        if accuser is None:
            self.send([peer], "rejected", {"reason": reason[:500]})
        company = len(self.context.peers.live()) > 1
        out = self.contributions.reject(peer, reason, accuser or self.me, company=company)
        if out or self.contributions.insists(peer, self.me):
            self.context.peers.ban(peer, f"contributions were rejected too often, last: {reason}")

    def broadcast(self, kind: str, body: Mapping[str, Json]) -> None:
        """Send to all live islands."""
        self.send([peer.id for peer in self.context.peers.live()], kind, body)

    def send(self, peers: Iterable[PeerId], kind: str, body: Mapping[str, Json]) -> None:
        """Send to `peers`, this one left out, addressed to this fragment and outer step."""
        address: dict[str, Json] = {"fragment": self.fragment, "outer_step": self.decision.outer_step}
        message = Message(kind, {**address, **body})
        for peer in peers:
            if peer != self.me:
                self.context.peers.post(peer, message)
