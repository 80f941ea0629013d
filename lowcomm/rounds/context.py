"""What all fragments' rounds of one peer share."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from dataclasses import dataclass, field

from lowcomm.codecs.base import Codec
from lowcomm.exchanges.base import Exchange
from lowcomm.ledger.blobs import Blobs
from lowcomm.ledger.mandate import Authority, Mandate
from lowcomm.ledger.redo import RedoLog
from lowcomm.ledger.state import OuterState
from lowcomm.peers.table import Peers
from lowcomm.rounds.policy import RoundPolicy, Rules
from lowcomm.rounds.promises import Promises
from lowcomm.rounds.rates import Rates
from lowcomm.rounds.values import Seen, Slot, View
from lowcomm.types import Digest, PeerId

VIEW_S = 0.1
"""A view is as old as that at most."""


@dataclass(slots=True)
class Context:
    """What all fragments' rounds of one peer share.

    Attributes:
        grace_s: who has not been heard for so long counts as absent, with `continue`.
        promises: what outlives a crash; None = nothing does.
        redo: of a run folder, with `majority`.
        founders: who may decide the first outer step; empty where nobody has said so.
        rates: at which contributions came in.
        authority: whose mandates count here, and which are in force.
    """

    exchange: Exchange
    peers: Peers
    blobs: Blobs
    state: OuterState
    codec: Codec
    policy: RoundPolicy
    pool: Executor
    chunk_elements: int
    grace_s: float
    authority: Authority
    promises: Promises | None = None
    redo: RedoLog | None = None
    founders: tuple[PeerId, ...] = ()
    rates: Rates = field(default_factory=Rates)
    _viewed: tuple[tuple[int, str, int], View] | None = None
    _slots: dict[int, tuple[tuple[Digest, tuple[PeerId, ...], Mandate | None], Slot]] = field(
        default_factory=dict
    )

    def view(self) -> View:
        """The swarm as it is now."""
        peers, me, now_s = self.peers, self.exchange.peer_id, asyncio.get_running_loop().time()
        seen = (peers.version, peers.state.phase, int(now_s / VIEW_S))
        if self._viewed is None or self._viewed[0] != seen:
            live = {peer.id: Seen(peer.state, peer.stalled, peer.answered_s) for peer in peers.live()}
            members = set[PeerId]().union(*(self.slot(f).electorate for f in range(len(self.state.chains))))
            view = View(
                live=live,
                phase=peers.state.phase,
                unheard_s={peer: peers.unheard_s(peer) for peer in members - live.keys() - {me}} | {me: 0.0},
                goodbyes=dict(peers.departed),
                banned=frozenset(peer for peer in peers.banned.names() if peer in peers.banned),
            )
            self._viewed = seen, view
        return self._viewed[1]

    def rules(self, fragment: int) -> Rules:
        """What the round machine of a fragment goes by."""
        return Rules(
            run_id=self.exchange.run_id,
            fragment=fragment,
            policy=self.policy,
            grace_s=self.grace_s,
            elements=self.state.fragments[fragment].elements,
            block_elements=self.codec.block_elements,
            chunk_elements=self.chunk_elements,
        )

    def slot(self, fragment: int) -> Slot:
        """What a fragment's chain has to decide next."""
        chain, known = self.state.chains[fragment], self._slots.get(fragment)
        mandate = self.authority.of(fragment, chain.outer_step, chain.head)
        follows = (chain.head, self.founders, mandate)
        if known is None or known[0] != follows:
            last = chain.last
            members = tuple(peer for peer, _ in last.participants) if last else self.founders
            slot = Slot(
                chain.outer_step + 1,
                chain.head,
                mandate.members if mandate else members,
                chain.total_tokens,
                mandate,
            )
            self._slots[fragment] = known = follows, slot
        return known[1]
