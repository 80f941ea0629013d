"""What the parts of one fragment's round share: the decision under way, and how to tell others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping

from lowcomm.exchanges.base import Message
from lowcomm.membership.contributions import Contributions
from lowcomm.outer.decision import Context, Decision
from lowcomm.outer.signal import Signal
from lowcomm.types import Json, PeerId

logger = logging.getLogger(__name__)


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
        self.changed = Signal()
        self.contributions = Contributions(context.policy.limits)
        self.decision = Decision(self.chain.outer_step + 1)

    @property
    def me(self) -> PeerId:
        return self.context.exchange.peer_id

    def now_s(self) -> float:
        """Loop time."""
        return asyncio.get_running_loop().time()

    def progressed(self) -> None:
        """Note that the ballot under way has moved."""
        self.decision.progress_s = self.now_s()

    def reject(self, peer: PeerId, reason: str, accuser: PeerId | None = None) -> None:
        """Leave a peer out of this outer step and tell it why; after too many times it is out.

        Args:
            accuser: who saw it, if not this peer itself.
        """
        if peer == self.me or peer in self.context.peers.banned:
            return
        logger.warning("fragment %d: contribution of %s rejected: %s", self.fragment, peer, reason)
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
