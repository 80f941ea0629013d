"""Catching up: following the peers that are ahead.

Whoever is behind asks a peer that is ahead for the entries after its own head, fetches their updates
and replays them: a few compressed updates, not the model. If the entries are no longer kept, weigh
more than the state, or its own head is not in that chain, it takes the state itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from lowcomm.errors import PeerUnreachableError, ProtocolError
from lowcomm.exchanges.fields import Fields
from lowcomm.ledger.entry import Entry, parse_entry
from lowcomm.peers.peer import Peer
from lowcomm.recovery.donor import MAX_ENTRIES
from lowcomm.recovery.member import Member
from lowcomm.recovery.snapshots import Snapshots
from lowcomm.rounds.roster import NO_BALLOT
from lowcomm.types import Digest, Json, PeerId

logger = logging.getLogger(__name__)

PAUSE_S = 0.2
"""Between two turns in which no donor could help; they may be about to drop off the list."""


@dataclass(slots=True)
class Moved:
    """What one catch-up did."""

    snapshot_bytes: int = 0
    failed: int = 0


class CatchingUp:
    """The catching-up side of a peer; call only from the exchange's loop."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._snapshots = Snapshots(member)
        self._taken: set[int] = set()
        self._moved_s = 0.0

    @property
    def progress_s(self) -> float:
        """When anything last came that this peer needs, or was replayed, in loop time."""
        return max(self._moved_s, self._member.blobs.progress_s)

    async def joined(self) -> None:
        """All fragments have been caught up with."""
        self._taken.clear()
        await self._snapshots.forget()

    async def catch_up(self, fragment: int, *, joining: bool = False) -> Moved:
        """Follow the peers that are ahead; a joiner also leaves a head that nobody else has.

        A donor that fails is passed over; what could not be fetched is tried again at the next call.

        Raises:
            PeerUnreachableError: for a joiner, if no donor could help.
        """
        member, moved = self._member, Moved()
        before = member.state.chains[fragment].head
        donors = self._donors(fragment, joining=joining)
        for donor in donors:
            others = [peer.id for peer in donors if peer.id != donor.id]
            failed = False
            try:
                entries = await self._missed(fragment, donor.id)
                if entries is None:
                    moved.snapshot_bytes += await self._snapshots.take(
                        fragment, [donor.id, *others], joining=joining
                    )
                    self._taken |= {fragment} if joining else set()
                else:
                    await self._replay(fragment, entries, [donor.id, *others])
            except (PeerUnreachableError, ProtocolError) as error:
                logger.warning("catching up from %s failed: %s", member.peers.called(donor.id), error)
                moved.failed += 1
                failed = True
            helped = member.state.chains[fragment].head != before
            member.rounds[fragment].judge_donor(donor.id, helped=helped)
            if helped or (joining and not failed):
                return moved
        if donors and joining:
            raise PeerUnreachableError(f"none of {len(donors)} islands could hand over fragment {fragment}")
        if donors:
            await asyncio.sleep(PAUSE_S)
        return moved

    def _donors(self, fragment: int, *, joining: bool) -> list[Peer]:
        member = self._member
        donors = member.rounds[fragment].ahead()
        if joining and not donors:
            same_height = [p for p in member.peers.live() if p.state.phase == "training" and p.state.heads]
            head = member.state.chains[fragment].head
            if same_height and all(p.state.heads[fragment] != head for p in same_height):
                return same_height
        return donors

    async def _missed(self, fragment: int, donor: PeerId) -> list[Entry] | None:
        """The entries after this peer's head; None if the donor doesn't have them or the state is smaller.

        A joiner that has taken a state replays whatever was committed while it came: as much would be
        committed while it took another one.

        Raises:
            ProtocolError: they are no chain, or lead to no head that anybody has.
            PeerUnreachableError: the donor doesn't answer.
        """
        member, chain = self._member, self._member.state.chains[fragment]
        outer_step, head = chain.outer_step, chain.head
        left_bytes = member.state.states[fragment].size_bytes
        entries: list[Entry] = []
        while True:
            body: dict[str, Json] = {"outer_step": outer_step, "head": head}
            reply = await member.requests.ask(donor, "entries", body, fragment)
            if not reply.has("entries"):
                return None
            page = await member.in_pool(_parse_page, reply, head)
            if page and not entries:
                # what this peer has voted for may be what the others have committed next; its own part in
                # it is credited then, also where a snapshot skips the entry
                member.rounds[fragment].commit_voted(page[0][1])
            left_bytes -= sum(entry.update_bytes for entry, _ in page)
            if left_bytes < 0 and fragment not in self._taken:
                return None
            known = self._announced(fragment, page)
            if known or not page:
                return [*entries, *(entry for entry, _ in page[:known])] if known else []
            entries += [entry for entry, _ in page]
            outer_step, head = page[-1][0].outer_step, page[-1][1]

    def _announced(self, fragment: int, page: Sequence[tuple[Entry, Digest]]) -> int:
        """How many entries there are up to the last one that is some island's head: its hash covers all.

        Raises:
            ProtocolError: they lead to no head that anybody has.
        """
        states = [
            peer.state for peer in self._member.peers.live() if peer.state.standing(fragment) is not None
        ]
        heads = {state.heads[fragment] for state in states}
        known = [index for index, (_, head) in enumerate(page) if head in heads]
        furthest = max((state.outer_steps[fragment] for state in states), default=0)
        if page and not known and page[-1][0].outer_step >= furthest:
            raise ProtocolError("the entries lead to a head that no live island has")
        return known[-1] + 1 if known else 0

    async def _replay(self, fragment: int, entries: Sequence[Entry], donors: list[PeerId]) -> None:
        member = self._member
        for entry in entries:
            if member.state.chains[fragment].outer_step >= entry.outer_step:
                continue  # committed here meanwhile
            accepted = await member.rounds[fragment].fetch(entry, donors, NO_BALLOT)
            if member.state.chains[fragment].outer_step + 1 == entry.outer_step:
                member.adopt(accepted)
                self._moved_s = asyncio.get_running_loop().time()


def _parse_page(reply: Fields, head: Digest) -> list[tuple[Entry, Digest]]:
    """The entries of one reply with their hashes; the first follows `head`.

    Raises:
        ProtocolError: one is malformed, or they are no chain.
    """
    page = []
    for item in reply.items("entries", MAX_ENTRIES):
        entry = parse_entry(Fields("entries.entry", item))
        if entry.previous != head:
            raise ProtocolError(f"entry {entry.outer_step} does not follow entry {entry.outer_step - 1}")
        head = entry.hash
        page.append((entry, head))
    return page
