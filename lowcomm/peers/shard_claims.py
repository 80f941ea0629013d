"""Which part of the data is whose: no two islands claim the same one, however many join at once.

An island that joins picks a part that nobody it knows of has, and tells each of the others, who answer with
their own. It keeps the part once all have answered to this very claim, no link is being made any more, and
nobody with a better right has the same one: who trains on it, or was told to by its settings, or else the
lower id. Of two that know of each other at least one hears so of the other's claim before it settles. Who was
linked and is gone without a goodbye, or has a link to others only, may be slow: what it has is taken last. A
link that comes up later than that is for `look`.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from lowcomm.errors import JoinRefusedError
from lowcomm.exchanges.base import Message, Signer
from lowcomm.exchanges.fields import Fields
from lowcomm.peers.acquaintances import MAX_KNOWN
from lowcomm.peers.notice import Notice
from lowcomm.peers.peer import Peer
from lowcomm.peers.requests import Requests
from lowcomm.peers.table import Peers
from lowcomm.types import Json, PeerId

logger = logging.getLogger(__name__)

CLAIM_PATIENCE_S = 10.0
"""Nobody waits longer for answers, or for a part to become free."""
RELINK_S = 3.0
"""A link that broke is given so long to come back."""
LOOK_S = 0.2


class ShardClaims:
    """The claims of a peer; call only from the exchange's loop."""

    def __init__(self, signer: Signer, peers: Peers, requests: Requests, changed: Notice) -> None:
        self._signer, self._peers, self._requests, self._changed = signer, peers, requests, changed
        self._num_shards = 0
        self._picking = False
        self._held: dict[PeerId, int] = {}  # what others have said they keep, before they train
        self._gone: dict[PeerId, tuple[int, float]] = {}  # what they had, and when the link broke
        self._told: dict[PeerId, frozenset[int]] = {}  # what others say that others yet train on
        self._warned: set[tuple[PeerId, int]] = set()

    async def claim(self, num_shards: int) -> None:
        """Claim a part of the data, unless one was set.

        Args:
            num_shards: how many there are; 0 = no data to claim.

        Raises:
            JoinRefusedError: all are claimed.
        """
        loop = asyncio.get_running_loop()
        self._num_shards = num_shards
        if num_shards == 0 or self._peers.state.shard >= 0:
            return
        give_up_s = loop.time() + CLAIM_PATIENCE_S
        number = 0
        self._picking = True
        try:
            while True:
                self._peers.say(shard=await self._pick(give_up_s))
                number += 1
                if await self._is_kept(number, give_up_s):
                    return
                self._peers.say(shard=-1)
        finally:
            self._picking = False

    async def _pick(self, give_up_s: float) -> int:
        """A part that nobody has; islands that pick at the same moment pick unlike ones, if they can."""
        loop = asyncio.get_running_loop()
        while True:
            free = self._free()
            if free:
                free = self._without_rumors(free) or free
                mine = self._signer.peer_id
                before_me = [p for p in self._others() if p.id < mine and p.state.shard < 0]
                return free[len(before_me) % len(free)]
            if all(self._is_settled(peer) for peer in self._others()) or loop.time() >= give_up_s:
                raise JoinRefusedError(
                    f"all {self._num_shards} shards of the data are claimed by live islands; raise "
                    "shared.data.shards (on all islands), or set data.shard to share one"
                )
            await self._changed.wait(LOOK_S)

    async def _is_kept(self, number: int, give_up_s: float) -> bool:
        """Tell all others of the claim, those who come meanwhile as well; whether nobody contests it.

        Args:
            number: of the claim; answers to an earlier one don't count for it.
        """
        loop = asyncio.get_running_loop()
        shard = self._peers.state.shard
        answered: set[PeerId] = set()
        while not self._is_contested(shard):
            unasked = [peer.id for peer in self._peers.live() if peer.id not in answered]
            if not unasked and not self._peers.dialing() and not self._may_come_back():
                return True
            left_s = give_up_s - loop.time()
            if left_s <= 0.0:
                logger.warning(
                    "shard %d of the data is taken although not all islands could be asked within %g s; if "
                    "one has the same, both will warn of it",
                    shard,
                    CLAIM_PATIENCE_S,
                )
                return True
            if not unasked:
                await self._changed.wait(min(LOOK_S, left_s))
                continue
            try:
                async with asyncio.timeout(left_s):
                    answers = await self._requests.ask_all(unasked, "claim", {"shard": shard}, number)
            except TimeoutError:
                continue
            for peer, answer in answers.items():
                self._note(peer, answer.integer("shard", -1), kept=answer.integer("settled", 0, 1) > 0)
                self._told[peer] = frozenset(answer.integers("known", MAX_KNOWN))
                answered.add(peer)
            if not answers:
                await self._changed.wait(min(LOOK_S, left_s))  # those who were asked have gone
        return False

    def _is_contested(self, shard: int) -> bool:
        """Whether an island with a better right to it has the same part."""
        mine = self._signer.peer_id
        for peer in self._others():
            if peer.state.shard == shard and (self._is_settled(peer) or peer.id < mine):
                return True
        return not self._without_rumors([shard]) and bool(self._without_rumors(self._free()))

    def _free(self) -> list[int]:
        """What nobody has who is linked."""
        taken = {peer.state.shard for peer in self._others()}
        return [shard for shard in range(self._num_shards) if shard not in taken]

    def _without_rumors(self, shards: list[int]) -> list[int]:
        """Those that nobody has who is gone, or whom only others know; it may be there no more."""
        rumored = {shard for shard, _ in self._gone.values()}.union(*self._told.values())
        return [shard for shard in shards if shard not in rumored]

    def _may_come_back(self) -> bool:
        """Whether a link broke so lately that nobody knows whether the island is gone."""
        since_s = asyncio.get_running_loop().time() - RELINK_S
        linked = self._peers.linked
        return any(peer not in linked and broke_s > since_s for peer, (_, broke_s) in self._gone.items())

    def on_peer_down(self, peer: PeerId) -> None:
        """A link is about to be taken down: remember what the island had, if it has not left in order."""
        entry = self._peers.linked.get(peer)
        if entry is not None and entry.state.role == "island" and entry.state.phase != "leaving":
            self._gone[peer] = entry.state.shard, asyncio.get_running_loop().time()

    def _is_settled(self, peer: Peer) -> bool:
        return peer.state.phase == "training" or self._held.get(peer.id) == peer.state.shard >= 0

    def _others(self) -> list[Peer]:
        """All islands that are linked and don't leave: who is silent for a moment keeps its part."""
        return [
            peer
            for peer in self._peers.linked.values()
            if peer.greeted and peer.state.role == "island" and peer.state.phase != "leaving"
        ]

    def _note(self, peer: PeerId, shard: int, *, kept: bool) -> None:
        if peer in self._peers.linked:
            entry = self._peers.linked[peer]
            entry.state = replace(entry.state, shard=shard)
        if kept:
            self._held[peer] = shard
        else:
            self._held.pop(peer, None)

    def on_claim(self, peer: PeerId, fields: Fields) -> None:
        """`claim?`: another island wants a part of the data; say which one this island has or wants."""
        self._note(peer, fields.integer("shard"), kept=False)
        known: list[Json] = [
            other.state.shard
            for other in self._others()
            if other.id != peer and other.state.phase == "training" and other.state.shard >= 0
        ]
        body: dict[str, Json] = {
            "fragment": fields.integer("fragment", -1),  # the claim's number, by which the answer is known
            "shard": self._peers.state.shard,
            "settled": int(not self._picking),
            "known": known[:MAX_KNOWN],
        }
        self._peers.post(peer, Message("claim", body))

    def look(self) -> None:
        """Warn, once, of another island that trains on the same part, whenever that is seen."""
        state = self._peers.state
        if self._num_shards == 0 or state.phase != "training":
            return
        for peer in self._peers.live():
            pair = peer.id, state.shard
            if (
                peer.state.phase == "training"
                and peer.state.shard == state.shard
                and pair not in self._warned
            ):
                self._warned.add(pair)
                logger.warning(
                    "shard %d of the data is used by this island and by %s, which train on the same "
                    "documents; set data.shard to another one on either, or to -1 for one that is free",
                    state.shard,
                    self._peers.called(peer.id),
                )
