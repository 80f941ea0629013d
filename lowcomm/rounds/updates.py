"""How a peer comes to hold an outer update: by reducing it with others, or by fetching it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lowcomm.errors import ProtocolError
from lowcomm.ledger.certificate import NO_BALLOT
from lowcomm.ledger.chunks import max_update_bytes
from lowcomm.ledger.entry import Entry
from lowcomm.ledger.fetching import fetch_bytes
from lowcomm.ledger.ranges import check_cut
from lowcomm.ledger.update import Update
from lowcomm.rounds.claims import ClaimJudge
from lowcomm.rounds.context import Context
from lowcomm.rounds.contribution import Accepted, Contribution
from lowcomm.rounds.roster import Roster
from lowcomm.rounds.transfer import Transfer
from lowcomm.types import PeerId


def make_transfer(
    context: Context,
    roster: Roster,
    contribution: Contribution,
    judge: ClaimJudge,
    on_progress: Callable[[], None],
) -> Transfer:
    """The transfer of one ballot."""
    return Transfer(
        context.exchange,
        context.exchange.peer_id,
        roster,
        context.state,
        contribution.values,
        judge=judge,
        pool=context.pool,
        on_progress=on_progress,
        rates=context.rates,
    )


async def reduce_update(
    context: Context, roster: Roster, contribution: Contribution, transfer: Transfer
) -> Accepted:
    """Run a ballot's transfer, and name what came of it."""
    staged = await transfer.run()
    entry = Entry(
        run_id=context.state.run_id,
        fragment=roster.fragment,
        outer_step=roster.outer_step,
        participants=tuple((m.peer, m.tokens) for m in roster.participants),
        total_tokens=context.state.chains[roster.fragment].total_tokens
        + sum(m.tokens for m in roster.participants),
        stops=roster.stops,
        chunk_elements=roster.chunk_elements,
        update_hash=staged.update_hash,
        update_bytes=staged.update.size_bytes,
        state_digest=staged.after.digest,
        previous=roster.previous,
        contributions=tuple((m.start, m.sum) for m in roster.participants),
        samples=context.state.credits_after(roster.fragment, [m.samples for m in roster.participants]),
    )
    return Accepted(
        roster.ballot,
        entry,
        staged.update,
        staged.after,
        staged.residual,
        staged.unsent,
        staged.mean_norm,
        contribution,
        roster.participants,
    )


async def fetch_update(
    context: Context,
    fragment: int,
    entry: Entry,
    donors: list[PeerId],
    mine: Contribution | None,
    held: Update | None = None,
) -> Accepted:
    """Fetch the update of an entry that follows this chain and recompute the state after it.

    Args:
        mine: what this peer has put into it.
        held: an update that is here already; used if it is this one.

    Raises:
        PeerUnreachableError: no donor delivered it.
        ProtocolError: it does not follow, or does not give the state that it names.
    """
    chain = context.state.chains[fragment]
    elements = context.state.fragments[fragment].elements
    most = max_update_bytes(
        context.codec, elements, len(entry.stops), entry.chunk_elements, len(entry.participants)
    )
    if entry.run_id != context.state.run_id or entry.fragment != fragment:
        raise ProtocolError("the entry is another run's or fragment's")
    if entry.previous != chain.head or entry.outer_step != chain.outer_step + 1:
        raise ProtocolError(f"entry {entry.outer_step} does not follow outer step {chain.outer_step}")
    if entry.total_tokens != chain.total_tokens + entry.tokens:
        raise ProtocolError(
            f"entry {entry.outer_step} names {entry.total_tokens} tokens in all, expected "
            f"{chain.total_tokens} before it and its own {entry.tokens}"
        )
    trained = entry.samples.trained if entry.samples else ()
    if entry.samples != context.state.credits_after(fragment, trained):
        raise ProtocolError(f"entry {entry.outer_step} credits other samples than those of its participants")
    check_cut(entry.stops, entry.chunk_elements, elements)
    if entry.update_bytes > most:
        raise ProtocolError(
            f"entry {entry.outer_step} names {entry.update_bytes} bytes for {elements} elements"
        )
    update = held
    if update is None or update.digest != entry.update_hash:
        deadline_s = context.policy.deadline_s
        data = await fetch_bytes(
            context.blobs, entry.update_hash, entry.update_bytes, donors, deadline_s, context.pool
        )
        update = Update([data])
    loop = asyncio.get_running_loop()
    after = await loop.run_in_executor(context.pool, context.state.apply, entry, update)
    return Accepted(NO_BALLOT, entry, update, after, None, None, None, mine, ())
