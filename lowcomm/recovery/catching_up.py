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
from lowcomm.ledger.certificate import is_quorum
from lowcomm.ledger.chain import Certified
from lowcomm.peers.peer import Peer
from lowcomm.recovery.forks import Branch, Side, other_stands
from lowcomm.recovery.member import Member
from lowcomm.recovery.paths import find_branch, parse_page
from lowcomm.recovery.snapshots import Snapshots
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

    async def redo(self) -> None:
        """Replay what this island's own disk has of what was committed after its checkpoint."""
        member, redo = self._member, self._member.context.redo
        if redo is None:
            return
        for fragment, chain in enumerate(member.state.chains):
            before = chain.outer_step
            for certified in await member.in_pool(redo.entries, fragment):
                entry, certificate = certified
                update = await member.in_pool(redo.update, entry)
                if entry.previous != chain.head or update is None or certificate is None:
                    continue
                try:
                    accepted = await member.rounds[fragment].fetch(entry, [], update)
                except (PeerUnreachableError, ProtocolError) as error:
                    logger.warning("fragment %d: %s can't be replayed: %s", fragment, redo.folder, error)
                    break
                member.adopt(accepted, certificate)
            if chain.outer_step > before:
                steps = f"{before + 1} to {chain.outer_step}"
                logger.info("fragment %d: outer steps %s are replayed from %s", fragment, steps, redo.folder)

    async def redoable(self) -> None:
        """Wait until the disk has what was committed."""
        redo = self._member.context.redo
        if redo is None:
            return
        try:
            await self._member.in_pool(redo.flush)
        except OSError as error:
            logger.warning("%s can't be written: %s", redo.folder, error)

    async def catch_up(self, fragment: int, *, joining: bool = False) -> Moved:
        """Follow the peers that are ahead; a joiner also leaves a head that nobody else has.

        A donor that fails is passed over; what could not be fetched is tried again at the next call.

        Raises:
            PeerUnreachableError: for a joiner, if no donor could help.
        """
        member, moved = self._member, Moved()
        before = member.state.chains[fragment].head
        donors, unknown = self._donors(fragment, joining=joining), list[Peer]()
        for turn in (donors, unknown):
            for donor in turn:
                givers = [donor.id, *(peer.id for peer in donors if peer.id != donor.id)]
                failed = False
                try:
                    entries = await self._missed(fragment, donor.id, joining=joining)
                    if entries is not None:
                        await self._replay(fragment, entries, givers)
                    else:
                        branch = None if joining else await find_branch(member, fragment, donor.id)
                        if branch is not None and not self._other_stands(fragment, donor, branch):
                            continue  # they will come over to this side
                        if branch is None and turn is donors and not joining:
                            unknown.append(donor)  # somebody else may know what was credited on the way
                            continue
                        moved.snapshot_bytes += await self._snapshots.take(
                            fragment,
                            givers if branch is None else self._with(donor, fragment),
                            joining=joining,
                            further=branch is None,
                            known=branch.theirs if branch is not None else (),
                        )
                        self._taken |= {fragment} if joining else set()
                except (PeerUnreachableError, ProtocolError) as error:
                    logger.warning("catching up from %s failed: %s", member.peers.called(donor.id), error)
                    moved.failed += 1
                    failed = True
                helped = member.state.chains[fragment].head != before
                member.rounds[fragment].following.judge(donor.id, helped=helped)
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
            chain = member.state.chains[fragment]
            training = [p for p in member.peers.live() if p.state.phase == "training" and p.state.heads]
            if member.context.policy.partition == "majority":
                # what is committed stands, and be it that nobody else who has it is here
                training = [p for p in training if p.state.outer_steps[fragment] >= chain.outer_step]
            if training and all(p.state.heads[fragment] != chain.head for p in training):
                return training
        return donors

    def _with(self, donor: Peer, fragment: int) -> list[PeerId]:
        """A donor, and those who are where it is: a state of others may be of a third history."""
        head = donor.state.heads[fragment]
        peers = [peer for peer in self._member.peers.live() if peer.state.standing(fragment) is not None]
        same = [peer.id for peer in peers if peer.state.heads[fragment] == head and peer.id != donor.id]
        return [donor.id, *same]

    def _other_stands(self, fragment: int, donor: Peer, branch: Branch) -> bool:
        """Whether a donor's history is the one to follow."""
        member, following = self._member, self._member.rounds[fragment].following
        chain, standing = member.state.chains[fragment], donor.state.standing(fragment)
        if standing is None:
            return False
        head = donor.state.heads[fragment]
        here = Side(chain.standing, chain.head, following.support(chain.head) + 1)
        stands = other_stands(branch, here, Side(standing, head, following.support(head)))
        if branch.mine is not None:
            following.take_sides(donor.id, stands=stands)
        return stands

    async def ask(self, donor: PeerId, fragment: int) -> list[Certified]:
        """The entries after this peer's head, as far as one answer of a donor has them.

        Raises:
            ProtocolError: they are no chain.
            PeerUnreachableError: the donor doesn't answer.
        """
        chain = self._member.state.chains[fragment]
        page = await self._ask(donor, fragment, chain.outer_step, chain.head)
        return page or []

    async def _ask(
        self, donor: PeerId, fragment: int, outer_step: int, head: Digest
    ) -> list[Certified] | None:
        body: dict[str, Json] = {"outer_step": outer_step, "head": head}
        reply = await self._member.requests.ask(donor, "entries", body, fragment)
        return await self._member.in_pool(parse_page, reply, head) if reply.has("entries") else None

    async def _missed(self, fragment: int, donor: PeerId, *, joining: bool) -> list[Certified] | None:
        """The entries after this peer's head; None if the donor doesn't have them or the state is smaller.

        A joiner that has taken a state replays whatever was committed while it came: as much would be
        committed while it took another one.

        Raises:
            ProtocolError: they are no chain, or lead to no head that anybody has; or those who may decide
                have not voted for them.
            PeerUnreachableError: the donor doesn't answer.
        """
        member, chain = self._member, self._member.state.chains[fragment]
        outer_step, head = chain.outer_step, chain.head
        left_bytes = member.state.states[fragment].size_bytes
        entries: list[Certified] = []
        while True:
            page = await self._ask(donor, fragment, outer_step, head)
            if page is None:
                return None
            if joining and any(self._is_strange(certified) for certified in page):
                return None  # a snapshot is one that most islands vouch for
            if page and not entries:
                if head != chain.head:
                    return []  # what came next has been committed here meanwhile
                await self._begin(fragment, page[0], donor, joining=joining)
            left_bytes -= sum(certified.entry.update_bytes for certified in page)
            if left_bytes < 0 and fragment not in self._taken:
                return None
            known = self._announced(fragment, page)
            if known or not page:
                return [*entries, *page[:known]] if known else []
            entries += page
            outer_step, head = page[-1].entry.outer_step, page[-1].entry.hash

    def _is_strange(self, certified: Certified) -> bool:
        """Whether an entry was decided by a mandate that doesn't count here."""
        mandate = certified.certificate.mandate if certified.certificate else None
        try:
            if mandate is not None:
                self._member.context.authority.check(mandate)
        except ProtocolError as error:
            logger.warning("outer step %d: %s", certified.entry.outer_step, error)
            return True
        return False

    async def _begin(self, fragment: int, first: Certified, donor: PeerId, *, joining: bool) -> None:
        """See whether others may have gone on with this entry; what this peer has voted for is committed.

        Its own part in it is credited then, also where a snapshot skips the entry.

        Raises:
            ProtocolError: they may not.
        """
        member, fragment_round = self._member, self._member.rounds[fragment]
        slot = member.context.slot(fragment)
        certificate = await member.in_pool(fragment_round.check, first, slot.electorate)
        here = [
            peer.id
            for peer in member.peers.live()
            if peer.state.standing(fragment) is not None and peer.state.heads[fragment] == slot.previous
        ]
        here.append(member.signer.peer_id)
        if certificate.absent and not joining and slot.electorate and is_quorum(here, slot.electorate, ()):
            raise ProtocolError(
                f"outer step {first.entry.outer_step} was committed as if {', '.join(certificate.absent)} "
                "were gone, but more than half of those who may decide are here"
            )
        if member.state.chains[fragment].head == slot.previous:
            fragment_round.following.has_proven(donor)
            fragment_round.on_certificate(first.entry, certificate)

    def _announced(self, fragment: int, page: Sequence[Certified]) -> int:
        """How many entries there are up to the last one that is some island's head: its hash covers all.

        Raises:
            ProtocolError: they lead to no head that anybody has.
        """
        states = [
            peer.state for peer in self._member.peers.live() if peer.state.standing(fragment) is not None
        ]
        heads = {state.heads[fragment] for state in states}
        known = [index for index, certified in enumerate(page) if certified.entry.hash in heads]
        furthest = max((state.outer_steps[fragment] for state in states), default=0)
        if page and not known and page[-1].entry.outer_step >= furthest:
            raise ProtocolError("the entries lead to a head that no live island has")
        return known[-1] + 1 if known else 0

    async def _replay(self, fragment: int, entries: Sequence[Certified], donors: list[PeerId]) -> None:
        member, fragment_round = self._member, self._member.rounds[fragment]
        for certified in entries:
            entry = certified.entry
            if member.state.chains[fragment].outer_step >= entry.outer_step:
                continue  # committed here meanwhile
            electorate = member.context.slot(fragment).electorate
            certificate = await member.in_pool(fragment_round.check, certified, electorate)
            accepted = await fragment_round.fetch(entry, donors)
            if member.state.chains[fragment].outer_step + 1 == entry.outer_step:
                member.adopt(accepted, certificate)
                self._moved_s = asyncio.get_running_loop().time()
                await self.redoable()  # updates of many outer steps may not wait for it in memory
