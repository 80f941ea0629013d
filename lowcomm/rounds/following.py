"""Whom to follow: peers whose chain of a fragment has more in it than this peer's."""

from __future__ import annotations

import asyncio

from lowcomm.ledger.chain import Standing
from lowcomm.peers.peer import Chains, Peer
from lowcomm.rounds.context import VIEW_S, Context
from lowcomm.types import Digest, PeerId

SIDES_S = 10.0
"""Which of two histories stands is looked into anew after so long."""
DOUBT_S, DOUBT_LONGEST_S = 1.0, 60.0
"""A claim to be ahead that turned out empty is not looked into again for so long, doubling."""


class Following:
    """One fragment's view of those who are ahead; call only from the exchange's loop, `ahead` from any."""

    def __init__(self, context: Context, fragment: int) -> None:
        self._context = context
        self._fragment = fragment
        self._chain = context.state.chains[fragment]
        self._doubts: dict[PeerId, tuple[float, float]] = {}
        self._proven: dict[PeerId, Digest] = {}
        self._sides: dict[PeerId, tuple[bool, float]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._verdicts = 0
        self._found: tuple[tuple[object, ...], list[Peer]] | None = None

    def ahead(self) -> list[Peer]:
        """Live peers to follow: those whose chain has more committed tokens, the furthest first.

        So a peer follows its own history where others have gone on with it. Whose history has parted from
        this one may be on the side that stands, whatever its tokens; it is among them until that has been
        looked into (`lowcomm.recovery.forks`).
        """
        peers, now_s = self._context.peers, self._now_s()
        seen = (peers.version, self._chain.head, self._verdicts, int(now_s / VIEW_S))
        found = self._found
        if found is None or found[0] != seen:
            self._found = found = seen, self._look(now_s)
        return list(found[1])

    def _look(self, now_s: float) -> list[Peer]:
        roll, here = self._context.peers.roll, self._chain.standing
        apart = [peer for place, there in roll.places.items() if self._differs(place, here) for peer in there]
        doubted = self._doubted() | roll.untrusted if apart else ()
        further: list[tuple[Standing, Peer]] = []
        for peer in apart:
            standing = peer.state.standing(self._fragment)
            if standing is None or peer.id in doubted:
                continue
            parted = self.has_parted(peer)
            stands, until_s = self._sides.get(peer.id, (True, 0.0)) if parted else (True, 0.0)
            if (parted and (stands or now_s >= until_s)) or (not parted and standing > here):
                further.append((standing, peer))
        further.sort(key=lambda pair: (-pair[0].total_tokens, -pair[0].outer_step, pair[1].id))
        return [peer for _, peer in further]

    def _differs(self, place: Chains, here: Standing) -> bool:
        """Whether who is there may be further than this peer, or its history another one."""
        standing = place.standing(self._fragment)
        if standing is None:
            return False
        mine = self._chain.head_at(standing.outer_step)
        further = standing > here or standing.outer_step > here.outer_step  # by fewer tokens: it has parted
        return further or (mine is not None and mine != place.heads[self._fragment])

    def is_led(self) -> bool:
        """Whether others have decided the next outer step, so that it is not to be decided here.

        Also where they could not hand it over yet, as long as they are here and have shown the decision.
        """
        if self.ahead():
            return True
        here, head = self._chain.standing, self._chain.head
        proven = {peer for peer, at in self._proven.items() if at == head}
        for peer in self._context.peers.live() if proven else ():
            standing = peer.state.standing(self._fragment)
            if peer.id in proven and standing is not None and standing > here:
                return True
        return False

    def has_proven(self, peer: PeerId) -> None:
        """A peer has shown an entry that follows this head, with a certificate."""
        self._proven[peer] = self._chain.head

    def has_parted(self, peer: Peer) -> bool:
        """Whether a peer's history is not this one, nor, as far as one can see, an earlier or later part."""
        standing = peer.state.standing(self._fragment)
        if standing is None:
            return False
        if standing.outer_step > self._chain.outer_step:
            return standing.total_tokens <= self._chain.total_tokens or peer.id in self._sides
        mine = self._chain.head_at(standing.outer_step)
        return mine is not None and mine != peer.state.heads[self._fragment]

    def take_sides(self, peer: PeerId, *, stands: bool) -> None:
        """A peer's history has parted from this one, and it is known which of the two stands."""
        self._verdicts += 1
        self._loop = asyncio.get_running_loop()
        self._sides[peer] = stands, self._loop.time() + SIDES_S

    def support(self, head: Digest) -> int:
        """How many live peers have this head."""
        live = self._context.peers.live()
        return sum(head in peer.state.heads[self._fragment : self._fragment + 1] for peer in live)

    def judge(self, peer: PeerId, *, helped: bool) -> None:
        """Note whether a peer that is ahead has handed over what it said it has; if not, it is not followed
        for a while.
        """
        self._verdicts += 1
        if helped:
            self._doubts.pop(peer, None)
            return
        pause_s = min(DOUBT_LONGEST_S, 2 * self._doubts.get(peer, (0.0, DOUBT_S / 2))[1])
        self._loop = asyncio.get_running_loop()
        self._doubts[peer] = (self._loop.time() + pause_s, pause_s)

    def _doubted(self) -> set[PeerId]:
        """Callable from the training thread, too."""
        if self._loop is None:
            return set()
        now_s = self._now_s()
        return {peer for peer, (until_s, _) in dict(self._doubts).items() if until_s > now_s}

    def _now_s(self) -> float:
        return self._loop.time() if self._loop is not None else 0.0
