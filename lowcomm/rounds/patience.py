"""What a peer remembers of others: for whom it need not wait, and whose data stalls."""

from __future__ import annotations

from collections.abc import Collection

from lowcomm.rounds.proposal import Edge, edge
from lowcomm.rounds.values import View
from lowcomm.types import PeerId

FIRST_PAUSE, LONGEST_PAUSE = 1, 8
"""A stall is remembered for so many outer steps, the first time and at most."""


class Patience:
    """One fragment's memory of its peers.

    Attributes:
        tardy: peers that missed a deadline, and when; not waited for again before they have been ready, or
            have said that they will be.
        committed: whether this peer has committed any round of the fragment.
    """

    def __init__(self, me: PeerId) -> None:
        self._me = me
        self.tardy: dict[PeerId, float] = {}
        self.committed = False
        self._answers: dict[PeerId, tuple[int, int]] = {}
        self._stalls: dict[PeerId, tuple[int, int]] = {}

    def ready(self, peer: PeerId) -> None:
        """A peer is ready: it is worth waiting for."""
        self.tardy.pop(peer, None)
        self._answers.pop(peer, None)

    def will_answer(self, peer: PeerId, outer_step: int) -> None:
        """A peer says that it will be ready as soon as others are.

        If it wasn't, it is believed again only after some outer steps, twice as many each time: a lie costs a
        deadline.
        """
        believed_from, pause = self._answers.get(peer, (0, 1))
        if peer in self.tardy and outer_step >= believed_from:
            del self.tardy[peer]
            self._answers[peer] = outer_step + pause, 2 * pause

    def waited_for(self, view: View) -> set[PeerId]:
        """Peers worth waiting for.

        Everyone who trains is waited for, also who is behind and will catch up, but for one deadline only:
        who missed it is not waited for again before it has been ready. Islands that are still on their way in
        are waited for at the start, not by a running swarm.
        """
        live = view.live.items()
        worth = {peer for peer, seen in live if seen.state.phase == "training" or not self.committed}
        return worth - self.tardy.keys()

    def missed(self, peers: Collection[PeerId], now_s: float) -> None:
        """These have missed a deadline."""
        for peer in peers:
            self.tardy.setdefault(peer, now_s)

    def called(self, peers: Collection[PeerId], now_s: float) -> None:
        """These hear now that others are ready; what they have answered before says nothing of that."""
        for peer in self.tardy.keys() & set(peers):
            self.tardy[peer] = now_s

    def abstains(self, view: View) -> set[PeerId]:
        """Peers that missed a deadline, and have answered a heartbeat that was sent after they were called.

        Control messages keep their order: so they have heard that others are ready, and are not. Who has
        only just fallen silent, or hears nothing of this peer, would look the same without that.
        """
        return {
            peer
            for peer, at_s in self.tardy.items()
            if peer in view.live and view.live[peer].answered_s >= at_s
        }

    def note_stalls(self, peers: Collection[PeerId], outer_step: int) -> set[Edge]:
        """Data of these, or their vote, does not come: edges that stand for some outer steps, ever more."""
        others = [peer for peer in peers if peer != self._me]
        for peer in others:
            until, pause = self._stalls.get(peer, (0, FIRST_PAUSE))
            if until < outer_step:
                self._stalls[peer] = outer_step + pause - 1, min(LONGEST_PAUSE, 2 * pause)
        return {edge(self._me, peer) for peer in others}

    def data_passed(self, peers: Collection[PeerId]) -> None:
        """These have sent all that they owed, and their votes."""
        for peer in peers:
            self._stalls.pop(peer, None)

    def stalled(self, outer_step: int) -> tuple[PeerId, ...]:
        """Peers whose data did not come lately."""
        return tuple(sorted(peer for peer, (until, _) in self._stalls.items() if until >= outer_step))
