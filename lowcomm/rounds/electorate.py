"""Whose word counts for a fragment's next outer step: who is aligned, ahead, worth waiting for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection

from lowcomm.ledger.chain import Standing
from lowcomm.peers.peer import Peer
from lowcomm.rounds.decision import Context
from lowcomm.types import PeerId

DOUBT_S, DOUBT_LONGEST_S = 1.0, 60.0
"""A claim to be ahead that turned out empty is not looked into again for so long, doubling."""


class Electorate:
    """One fragment's view of the live peers; call only from the exchange's loop.

    Attributes:
        absent: peers that missed a deadline; not waited for again before they have been ready, or have said
            that they will be.
        committed_here: whether this peer has committed any round of the fragment itself.
    """

    def __init__(self, context: Context, fragment: int) -> None:
        self._context = context
        self._fragment = fragment
        self._chain = context.state.chains[fragment]
        self.absent: set[PeerId] = set()
        self._promises: dict[PeerId, tuple[int, int]] = {}
        self._doubts: dict[PeerId, tuple[float, float]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self.committed_here = False

    def ahead(self) -> list[Peer]:
        """Live peers to follow: those whose chain has more committed tokens, the furthest first.

        So a peer follows its own history where others have gone on with it, and where the history has
        forked, the side on which more has been trained, also if it took fewer outer steps. Between sides
        that are equal in both, what most live peers have wins.
        """
        doubted = self._doubted() | self._context.peers.untrusted()
        here = self._chain.standing
        further: list[tuple[Standing, Peer]] = []
        equal: list[Peer] = []
        for peer in self._context.peers.live():
            standing = peer.state.standing(self._fragment)
            if standing is None or peer.id in doubted:
                continue
            if standing > here:
                further.append((standing, peer))
            elif standing == here:
                equal.append(peer)
        if not further:
            return self._winners(equal)
        further.sort(key=lambda pair: (-pair[0].total_tokens, -pair[0].outer_step, pair[1].id))
        return [peer for _, peer in further]

    def doubt(self, peer: PeerId) -> None:
        """A peer that says it is ahead has handed over nothing: it is not followed for a while."""
        pause_s = min(DOUBT_LONGEST_S, 2 * self._doubts.get(peer, (0.0, DOUBT_S / 2))[1])
        self._loop = asyncio.get_running_loop()
        self._doubts[peer] = (self._loop.time() + pause_s, pause_s)

    def _doubted(self) -> set[PeerId]:
        """Callable from the training thread, too."""
        if self._loop is None:
            return set()
        now_s = self._loop.time()
        return {peer for peer, (until_s, _) in dict(self._doubts).items() if until_s > now_s}

    def ready(self, peer: PeerId) -> None:
        """A peer is ready: it is worth waiting for."""
        self.absent.discard(peer)
        self._promises.pop(peer, None)

    def will_answer(self, peer: PeerId) -> None:
        """A peer says that it will be ready as soon as others are.

        If it wasn't, it is believed again only after some outer steps, twice as many each time: a lie costs a
        deadline.
        """
        outer_step = self._chain.outer_step
        believed_from, pause = self._promises.get(peer, (0, 1))
        if peer in self.absent and outer_step >= believed_from:
            self.absent.discard(peer)
            self._promises[peer] = outer_step + pause, 2 * pause

    def trust(self, peer: PeerId) -> None:
        """A peer has handed over what it said it has."""
        self._doubts.pop(peer, None)

    def _winners(self, peers: list[Peer]) -> list[Peer]:
        """Of peers with this standing, those with the head that most live peers have; the least of equals."""
        support = Counter(peer.state.heads[self._fragment] for peer in peers)
        support[self._chain.head] += 1
        best = min(support, key=lambda head: (-support[head], head))
        if best == self._chain.head:
            return []
        return sorted((p for p in peers if p.state.heads[self._fragment] == best), key=lambda p: p.id)

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

    def may_commit(self, peers: Collection[PeerId]) -> bool:
        """Whether these peers are enough by the policy.

        With `majority`, more than half of the very peers that took part in the round before: any two
        such sets have a peer in common, and its promises keep them from deciding twice.

        One member that has said goodbye is left out of the count: it votes no more, so a majority of the
        others meets any majority of all, also one that counts it still because it has not heard of it. With
        two left out that would not hold.
        """
        policy, last = self._context.policy, self._chain.last
        if len(peers) < max(1, policy.min_participants):
            return False
        if policy.partition != "majority":
            return True
        if last is None:
            return 2 * len(peers) > self._context.founders
        members = {peer for peer, _ in last.participants}
        gone = sorted(members & self._context.peers.departed)
        members -= set(gone[:1])
        return 2 * len(members & set(peers)) > len(members)
