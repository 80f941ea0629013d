"""Taking a fragment's state from several peers at once.

All donors are asked which state they serve; the one that most of them serve is fetched, in pieces
that are checked one by one against the state digest of a ledger entry
(docs/design/0005-snapshots.md). That entry's certificate is checked against the entry before it, where a
donor has that one. A newcomer, and whoever can't check it, believes in the entry only if at least half of
the islands that train have it in their chain.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lowcomm.errors import PeerUnreachableError, ProtocolError
from lowcomm.exchanges.fields import Fields
from lowcomm.ledger.chain import Certified, Standing, parse_certified
from lowcomm.ledger.entry import Entry, genesis_head, parse_entry
from lowcomm.ledger.fetching import Fetch
from lowcomm.recovery.forks import Switch
from lowcomm.recovery.incoming import Incoming, unfinished
from lowcomm.recovery.member import Member
from lowcomm.recovery.paths import path_to, remember
from lowcomm.types import Digest, Json, PeerId

logger = logging.getLogger(__name__)
NONE = Standing(0, 0)
LOOK_S = 1.0
"""Between two looks at who else may serve a state that is being fetched."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A state that a peer serves: its digest, and the entry that it comes after.

    Attributes:
        before: the entry before that one; None = the donor doesn't have it.
    """

    digest: Digest
    outer_step: int
    head: Digest
    tip: Certified | None
    before: Entry | None = field(default=None, compare=False)

    @property
    def standing(self) -> Standing:
        return Standing(self.tip.entry.total_tokens if self.tip else 0, self.outer_step)


def parse_offer(fields: Fields, run_id: str, fragment: int) -> Offer:
    """Check and build what a donor offers.

    Raises:
        ProtocolError: the head doesn't cover the digest, or the entry before it.
    """
    digest, outer_step, head = fields.digest("digest"), fields.integer("outer_step"), fields.digest("head")
    tip = parse_certified(fields.inner("last")) if fields.has("last") else None
    if tip is None:
        covered = outer_step == 0 and head == genesis_head(run_id, fragment, digest)
    else:
        last = tip.entry
        covered = (last.hash, last.state_digest, last.outer_step) == (head, digest, outer_step)
    if not covered:
        raise ProtocolError("the snapshot's state is not the one that its ledger names")
    before = parse_entry(fields.inner("before")) if fields.has("before") else None
    if before is not None and (tip is None or before.hash != tip.entry.previous):
        raise ProtocolError("the entry before the snapshot's is not the one that it follows")
    return Offer(digest, outer_step, head, tip, before)


class Snapshots:
    """The taking side of one peer; call only from the exchange's loop."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._incoming: dict[int, Incoming] = {}
        self._whole: list[Incoming] = []
        self._turn = asyncio.Lock()

    async def take(
        self,
        fragment: int,
        donors: Sequence[PeerId],
        *,
        joining: bool,
        further: bool = True,
        known: Sequence[Certified] = (),
    ) -> int:
        """Replace a fragment's state by the one that most donors serve; one fragment at a time.

        Returns:
            Its bytes; 0 where that state is this peer's own, or one that is behind it.

        What came before a failure is kept for the next call, and on disk for the next life.

        Args:
            joining: at least half of the islands that train must have the state's entry; and what came stays
                on disk until `forget`, as a joiner that is killed begins with all fragments anew.
            further: one that is behind this peer's is not taken; unless its history is known to stand.
            known: the entries that follow this peer's history in theirs, as far as they are known.

        Raises:
            PeerUnreachableError: it could not be fetched, or too few vouch for it.
        """
        async with self._turn:  # so that donors keep one version of one fragment for this peer
            return await self._take(fragment, donors, known, joining=joining, further=further)

    async def forget(self) -> None:
        """All fragments are there: what is on disk of them goes."""
        whole, self._whole = self._whole, []
        for incoming in whole:
            await self._member.in_pool(incoming.discard)

    async def _take(
        self,
        fragment: int,
        donors: Sequence[PeerId],
        known: Sequence[Certified],
        *,
        joining: bool,
        further: bool,
    ) -> int:
        member = self._member
        chain = member.state.chains[fragment]
        least = _before(known[0].entry) if known else NONE if joining or not further else chain.standing
        offer, givers = await self._choose(fragment, donors, least)
        if offer.head == chain.head:
            return 0  # they have come over to this peer's side of a fork meanwhile
        if joining or not (known or self._electorate(offer)):
            await self._vouch(fragment, offer, givers)
        if not joining and further and offer.standing < chain.standing:
            logger.warning(
                "fragment %d: %s said to be ahead, and serve outer step %d with %d committed tokens; "
                "here it is outer step %d with %d",
                fragment, ", ".join(givers), offer.outer_step, offer.standing.total_tokens,
                chain.outer_step, chain.total_tokens,
            )  # fmt: skip
            return 0
        step, path = offer.outer_step, list[Certified]()
        if known and chain.head_at(step) != offer.head:
            path = await path_to(member, fragment, step, offer.head, known, givers[0])
        incoming = await self._open(fragment, offer.digest)
        await self._fetch(fragment, offer, givers, incoming)
        del self._incoming[fragment]
        self._whole.append(incoming)
        if not joining:
            await self.forget()
        member.state.states[fragment] = incoming.finish()
        left = chain.restart_at(step, offer.head, offer.tip, path)
        switch = Switch(None if left is None else tuple(left), tuple(path), member.rounds[fragment].sent)
        member.state.residuals[fragment] = None
        member.recorder.snapshot(fragment, step, offer.head, offer.digest, offer.tip)
        member.rounds[fragment].restart()
        if not joining:
            member.submissions.switched(fragment, switch)
        member.publish_position()
        if left is None and step > 1:
            await remember(member, fragment, step - 1, givers)
        return incoming.size_bytes

    async def _fetch(self, fragment: int, offer: Offer, givers: Sequence[PeerId], incoming: Incoming) -> None:
        """Fetch a state, also from those who come to serve it meanwhile.

        Raises:
            PeerUnreachableError: nobody is left who serves it.
        """
        member = self._member
        fetch = Fetch(
            member.blobs, offer.digest, incoming.size_bytes, givers, incoming, member.deadline_s, member.pool
        )
        looking = asyncio.create_task(self._find_more(fragment, offer, set(givers), fetch))
        try:
            await fetch.run()
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    async def _find_more(self, fragment: int, offer: Offer, asked: set[PeerId], fetch: Fetch) -> None:
        """Ask those who come, or come back, whether they serve a state, too."""
        while True:
            await asyncio.sleep(LOOK_S)
            trainers = {peer.id for peer in self._member.peers.live() if peer.state.phase == "training"}
            new = sorted(trainers & (fetch.idle | (trainers - asked)))
            if new:
                asked |= set(new)
                offers = await self._ask(fragment, new, offer.digest, offer.standing)
                fetch.add([peer for peer, offered in offers.items() if offered == offer])

    async def _choose(
        self, fragment: int, donors: Sequence[PeerId], least: Standing
    ) -> tuple[Offer, list[PeerId]]:
        """The state to fetch, and who serves it; one that has come in part is preferred."""
        begun = self._incoming.get(fragment)
        wanted = (
            begun.digest if begun else await self._member.in_pool(unfinished, fragment, self._member.folder)
        )
        offers = await self._ask(fragment, donors, wanted, least)
        if not offers:
            raise PeerUnreachableError(f"none of {len(donors)} islands offers a state of fragment {fragment}")
        votes: dict[Digest, list[PeerId]] = {}
        for peer, offer in offers.items():
            votes.setdefault(offer.digest, []).append(peer)
        digest = max(votes, key=lambda d: (d == wanted, len(votes[d]), offers[votes[d][0]].standing))
        same = [offers[peer] for peer in votes[digest]]
        chosen = next((offer for offer in same if offer.before is not None), same[0])
        others = [peer for peer in offers if offers[peer] != chosen]
        if others and digest != wanted:
            offers.update(await self._ask(fragment, others, digest, least))
        return chosen, [peer for peer in donors if offers.get(peer) == chosen]

    async def _ask(
        self, fragment: int, peers: Sequence[PeerId], wanted: Digest | None, least: Standing
    ) -> dict[PeerId, Offer]:
        member, offers = self._member, {}
        body: dict[str, Json] = {"wanted": wanted, **least._asdict()}
        for peer, fields in (await member.requests.ask_all(peers, "snapshot", body, fragment)).items():
            try:
                offer = parse_offer(fields, member.state.run_id, fragment)
                if offer.tip is not None:
                    electorate = self._electorate(offer)
                    await member.in_pool(member.rounds[fragment].check, offer.tip, electorate)
                offers[peer] = offer
            except ProtocolError as error:
                logger.warning(
                    "fragment %d: %s offers a false snapshot: %s", fragment, member.peers.called(peer), error
                )
        return offers

    def _electorate(self, offer: Offer) -> tuple[PeerId, ...] | None:
        """Who may decide the outer step of an offer's entry; None where that isn't known.

        Where an operator had to say it, whoever knows that operator's key finds it in the certificate; a
        newcomer that doesn't is told by the others.
        """
        tip = offer.tip
        if tip is None or (tip.certificate is not None and tip.certificate.mandate is not None):
            return None
        if offer.before is not None:
            return tuple(peer for peer, _ in offer.before.participants)
        return (self._member.context.founders or None) if tip.entry.outer_step == 1 else None

    async def _vouch(self, fragment: int, offer: Offer, givers: Sequence[PeerId]) -> None:
        """Have at least half of the islands that train say that the state is one of their history.

        Raises:
            PeerUnreachableError: fewer do.
        """
        trainers = [peer.id for peer in self._member.peers.live() if peer.state.phase == "training"]
        others = [peer for peer in trainers if peer not in givers]
        body: dict[str, Json] = {"outer_step": offer.outer_step, "head": offer.head}
        answers = await self._member.requests.ask_all(others, "entries", body, fragment)
        vouching = len(givers) + sum(_follows(fields, offer.head) for fields in answers.values())
        if 2 * vouching < len(trainers):
            raise PeerUnreachableError(
                f"{vouching} of {len(trainers)} islands know outer step {offer.outer_step} of fragment "
                f"{fragment} as {', '.join(givers)} tell it; half of them are needed"
            )

    async def _open(self, fragment: int, digest: Digest) -> Incoming:
        begun = self._incoming.pop(fragment, None)
        if begun is not None and begun.digest == digest:
            incoming = begun
        else:
            member, like = self._member, self._member.state.states[fragment]
            incoming = await member.in_pool(
                Incoming, fragment, digest, like, member.folder, member.state.vectors, begun
            )
        if incoming.have:
            logger.info("fragment %d: %d pieces of a snapshot are here already", fragment, len(incoming.have))
        self._incoming[fragment] = incoming
        return incoming


def _before(entry: Entry) -> Standing:
    """Of the history that it follows."""
    return Standing(entry.total_tokens - entry.tokens, entry.outer_step - 1)


def _follows(answer: Fields, head: Digest) -> bool:
    """Whether the answer to `entries?` after `head` says that `head` is known, with what follows it."""
    if not answer.has("entries"):
        return False
    items = answer.items("entries", 1 << 16)
    first: Mapping[str, Json] | Json = items[0] if items else {"previous": head}
    return isinstance(first, Mapping) and first.get("previous") == head
