"""Whose word counts for a fragment's next outer step: who is aligned, ahead, worth waiting for."""

from __future__ import annotations

from lowcomm.membership.peers import Peer
from lowcomm.outer.decision import Context
from lowcomm.types import PeerId


class Electorate:
    """One fragment's view of the live peers; call only from the exchange's loop.

    Attributes:
        absent: peers that missed a deadline; not waited for again before they have been ready.
        committed_here: whether this peer has committed any round of the fragment itself.
    """

    def __init__(self, context: Context, fragment: int) -> None:
        self._context = context
        self._fragment = fragment
        self._chain = context.state.chains[fragment]
        self.absent: set[PeerId] = set()
        self.committed_here = False

    def ahead(self) -> list[Peer]:
        """Live peers that have committed more of this fragment, the furthest first."""
        peers = [
            peer
            for peer in self._context.peers.live()
            if peer.state.phase == "training"
            and self._fragment < len(peer.state.outer_steps)
            and peer.state.outer_steps[self._fragment] > self._chain.outer_step
        ]
        return sorted(peers, key=lambda peer: (-peer.state.outer_steps[self._fragment], peer.id))

    def look(self) -> tuple[set[PeerId], set[PeerId]]:
        """(peers with this peer's head, peers worth waiting for).

        Everyone who trains is waited for, also who is behind and will catch up, but for one
        deadline only: who missed it is not waited for again before it has been ready. Islands that
        are still on their way in are waited for at the start, not by a running swarm.
        """
        aligned, waiting = set(), set()
        for peer in self._context.peers.live():
            heads = peer.state.heads
            if peer.state.phase == "training":
                if self._fragment < len(heads) and heads[self._fragment] == self._chain.head:
                    aligned.add(peer.id)
                waiting.add(peer.id)
            elif not self.committed_here:
                waiting.add(peer.id)
        return aligned, waiting - self.absent

    def may_commit(self, participants: int) -> bool:
        """Whether so many are enough by the policy."""
        policy, last = self._context.policy, self._chain.last
        if participants < max(1, policy.min_participants):
            return False
        return policy.partition != "majority" or last is None or 2 * participants > len(last.participants)
