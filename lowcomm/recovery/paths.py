"""Asking others which entries led where: to where their history parts from this one's, and to a state."""

from __future__ import annotations

from collections.abc import Sequence

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.fields import Fields
from lowcomm.ledger.chain import Certified, parse_certified
from lowcomm.recovery.donor import MAX_ENTRIES
from lowcomm.recovery.forks import Branch
from lowcomm.recovery.member import Member
from lowcomm.types import Digest, Json, PeerId


def parse_page(reply: Fields, head: Digest) -> list[Certified]:
    """The entries of one reply; the first follows `head`.

    Raises:
        ProtocolError: one is malformed, or they are no chain.
    """
    page = []
    for item in reply.items("entries", MAX_ENTRIES):
        certified = parse_certified(Fields("entries.entry", item))
        step = certified.entry.outer_step
        if certified.entry.previous != head:
            raise ProtocolError(f"entry {step} does not follow entry {step - 1}")
        head = certified.entry.hash
        page.append(certified)
    return page


async def find_branch(member: Member, fragment: int, donor: PeerId) -> Branch | None:
    """Where a donor's history parts from this one; None where that is not known any more.

    Raises:
        ProtocolError: what it says is no history, or those who may decide have not voted for it.
        PeerUnreachableError: it doesn't answer.
    """
    chain = member.state.chains[fragment]
    theirs = await _after(member, fragment, donor, chain.points())
    if not theirs:
        return None
    common = theirs[0].entry.outer_step - 1
    while (mine := chain.entry_at(common + 1)) is not None and theirs:
        if mine.entry.hash != theirs[0].entry.hash:
            break
        common, theirs = common + 1, theirs[1:]  # the points are some way apart
    if not theirs or chain.head_at(common) != theirs[0].entry.previous:
        return None
    before = chain.entry_at(common)
    members = [peer for peer, _ in before.entry.participants] if before else list(member.context.founders)
    electorate = tuple(members) if before or common == 0 else ()
    await member.in_pool(member.rounds[fragment].check, theirs[0], electorate or None)
    return Branch(electorate, mine, tuple(theirs))


async def path_to(
    member: Member, fragment: int, outer_step: int, head: Digest, known: Sequence[Certified], giver: PeerId
) -> list[Certified]:
    """The entries from the first of `known` to a head; those that aren't known are asked of who has it.

    Raises:
        ProtocolError: they don't lead there.
        PeerUnreachableError: it doesn't answer.
    """
    path = list(known)
    while path[-1].entry.outer_step < outer_step:
        last = path[-1].entry
        page = await _after(member, fragment, giver, [(last.outer_step, last.hash)])
        if not page or page[0].entry.previous != last.hash:
            break
        path += page
    path = [one for one in path if one.entry.outer_step <= outer_step]
    if not path or path[-1].entry.hash != head:
        raise ProtocolError(f"the state after outer step {outer_step} is not one that its history leads to")
    return path


async def remember(member: Member, fragment: int, until: int, givers: Sequence[PeerId]) -> None:
    """Ask for the entries until an outer step, which have led to a state, so that others can be told them."""
    body: dict[str, Json] = {"points": [], "until": max(0, until)}
    for reply in (await member.requests.ask_all(givers[:1], "branch", body, fragment)).values():
        before = await member.in_pool(_page_of, reply)
        member.state.chains[fragment].remember(before or [])


async def _after(
    member: Member, fragment: int, peer: PeerId, points: Sequence[tuple[int, Digest]]
) -> list[Certified] | None:
    """The entries after the newest of these points that is in a peer's history, as many as a reply holds."""
    told: list[Json] = [{"outer_step": step, "head": head} for step, head in points]
    reply = await member.requests.ask(peer, "branch", {"points": told}, fragment)
    return await member.in_pool(_page_of, reply)


def _page_of(reply: Fields) -> list[Certified] | None:
    items = reply.items("entries", MAX_ENTRIES) if reply.has("entries") else None
    return parse_page(reply, Fields("branch.entry", items[0]).digest("previous")) if items else None
