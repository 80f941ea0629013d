"""The round as a state machine: ready, roster, transfer, votes, commit or the next ballot.

The rules that make it atomic (docs/design/0001-skeleton.md):

- joining a ballot is a promise never to vote in a lower one;
- who has accepted an update joins no later ballot but one that finalises it (or a newer one);
- an update commits with the equal votes of all participants of a ballot, or when a peer that has
  committed it says so and it has been accepted here, too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from lowcomm.errors import NonFiniteError, PeerUnreachableError, ProtocolError
from lowcomm.exchanges.base import Message
from lowcomm.membership.fields import Fields
from lowcomm.membership.ledger import Entry
from lowcomm.membership.peers import Peer
from lowcomm.membership.roster import (
    NO_BALLOT,
    Ballot,
    Participant,
    Roster,
    even_stops,
    leader_order,
    parse_ballot,
    parse_roster,
)
from lowcomm.outer.decision import Accepted, Context, Contribution, Decision, Ready, parse_ready
from lowcomm.outer.signal import Signal
from lowcomm.outer.transfer import PeerFailedError, Transfer
from lowcomm.types import Json, PeerId

logger = logging.getLogger(__name__)

MAX_VOTED_BALLOTS = 64
LEADER_PATIENCE = 1.5
"""A leader that is alive but silent is followed by the next one after so many deadlines."""


class FragmentRound:
    """One fragment's rounds on one peer; call only from the exchange's loop.

    Args:
        fragment: its index.
        on_commit: called with each entry that was committed here.
    """

    def __init__(self, context: Context, fragment: int, on_commit: Callable[[Entry, Accepted], None]) -> None:
        self._context = context
        self._fragment = fragment
        self._on_commit = on_commit
        self._chain = context.state.chains[fragment]
        self._early: dict[int, dict[PeerId, Ready]] = {}
        self._committed_here = False
        self._absent: set[PeerId] = set()
        self.changed = Signal()
        self.decision = Decision(self._chain.outer_step + 1)

    @property
    def _me(self) -> PeerId:
        return self._context.exchange.peer_id

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    # -- called by the node ----------------------------------------------------------------------

    @property
    def called(self) -> bool:
        """Whether other peers are ready for the next outer step, or have gone past it."""
        return bool(self.ahead()) or any(
            ready.previous == self._chain.head for ready in self.decision.readies.values()
        )

    def look(self) -> None:
        """The swarm changed: perhaps a round can be formed now, or has become hopeless."""
        self._follow_commit()
        self._tell_ready()
        self._lead()
        self.changed.notify()

    def contribute(self, contribution: Contribution) -> None:
        """This peer is due: announce it."""
        self.decision.contribution = contribution
        self.decision.unformed = self.decision.refusal = ""
        self.announce()

    def announce(self) -> None:
        """Broadcast that this peer is due, with what it has promised and accepted."""
        decision, contribution = self.decision, self.decision.contribution
        if contribution is None:
            return
        accepted = decision.accepted
        decision.ready = Ready(
            previous=self._chain.head,
            tokens=contribution.tokens,
            norm=contribution.norm,
            inner_step=contribution.inner_step,
            promised=decision.promised,
            accepted=(accepted.ballot, accepted.entry) if accepted else None,
        )
        decision.told.clear()
        self._tell_ready()
        self._take_ready(self._me, decision.ready)

    def _tell_ready(self) -> None:
        """Send this peer's readiness to those who train and have not heard of it, newcomers too."""
        decision = self.decision
        if decision.ready is None or decision.task is not None:
            return
        untold = [
            peer.id
            for peer in self._context.peers.live()
            if peer.state.phase == "training" and peer.id not in decision.told
        ]
        decision.told.update(untold)
        self._send(tuple(untold), "ready", decision.ready.to_json())

    def next_deadline_s(self) -> float:
        """When to look again although nothing has come: seconds from now."""
        decision, deadline_s = self.decision, self._context.policy.deadline_s
        since = decision.progress_s if decision.task is not None else decision.first_ready_s
        waited = self._now() - since
        return max(0.05, deadline_s - waited if waited < deadline_s else deadline_s / 4)

    def check_stall(self) -> None:
        """End a ballot in which nothing has moved for a whole deadline."""
        decision = self.decision
        deadline_s = self._context.policy.deadline_s
        if decision.task is None or self._now() - decision.progress_s < deadline_s:
            return
        owing = decision.transfer.missing_parts_from() if decision.transfer else []
        decision.avoid |= set(owing)
        self.fail(f"nothing came for {deadline_s:g} s" + (f" from {', '.join(owing)}" if owing else ""))

    async def abandon(self) -> None:
        """Give up on this round. Training goes on; promises and an accepted update stay."""
        decision = self.decision
        await self._end_ballot()
        decision.contribution = decision.ready = None
        decision.readies.pop(self._me, None)

    def restart(self) -> None:
        """The chain moved by other means (catch-up, snapshot): decide what follows it."""
        self._cancel_ballot()
        previous = self.decision
        self.decision = Decision(self._chain.outer_step + 1)
        self.decision.contribution = previous.contribution
        for outer_step in [step for step in self._early if step < self.decision.outer_step]:
            del self._early[outer_step]
        self.decision.readies = self._early.pop(self.decision.outer_step, {})
        if previous.outer_step == self.decision.outer_step:
            self.decision.readies = previous.readies  # another head at the same height; who shares it counts
        self.decision.first_ready_s = self._now()
        self.changed.notify()

    async def close(self) -> None:
        """End the ballot under way."""
        await self._end_ballot()

    # -- messages --------------------------------------------------------------------------------

    def on_ready(self, peer: PeerId, fields: Fields) -> None:
        """A peer is due."""
        ready, outer_step = parse_ready(fields), fields.integer("outer_step", 1)
        if outer_step == self.decision.outer_step:
            self._take_ready(peer, ready)
        elif outer_step == self.decision.outer_step + 1:
            self._early.setdefault(outer_step, {})[peer] = ready  # it has committed, this peer not yet

    def on_roster(self, peer: PeerId, fields: Fields) -> None:
        """A leader's proposal: join it if no promise forbids.

        Raises:
            ProtocolError: it is not the sender's to propose, or not signed by it.
        """
        roster = parse_roster(fields.inner("roster"))
        if roster.fragment != self._fragment or roster.ballot.leader != peer:
            raise ProtocolError(
                f"roster of {peer}: it names fragment {roster.fragment} and leader {roster.ballot.leader}"
            )
        signature = bytes.fromhex(fields.text("signature", 1_024))
        signed = roster.signed_bytes(self._context.exchange.run_id)
        if not self._context.exchange.verify(peer, signed, signature):
            raise ProtocolError(f"roster of {peer}: the signature is not the leader's")
        self._join(roster)

    def on_unformed(self, fields: Fields) -> None:
        """The leader found too few participants by the deadline."""
        if fields.integer("outer_step", 1) == self.decision.outer_step and self.decision.task is None:
            self.decision.unformed = fields.text("reason", 500)
            self.changed.notify()

    def on_vote(self, peer: PeerId, fields: Fields) -> None:
        """A participant holds the whole update and names it."""
        decision = self.decision
        if fields.integer("outer_step", 1) != decision.outer_step:
            return
        ballot = parse_ballot(fields)
        votes = decision.votes.setdefault(ballot, {})
        votes.setdefault(peer, (fields.digest("entry"), fields.digest("state")))
        while len(decision.votes) > MAX_VOTED_BALLOTS:
            del decision.votes[min(decision.votes)]
        decision.progress_s = self._now()
        self._count_votes()

    def on_abort(self, peer: PeerId, fields: Fields) -> None:
        """A participant ended a ballot."""
        decision = self.decision
        roster = decision.roster
        if (
            roster is None
            or peer not in roster.peers
            or fields.integer("outer_step", 1) != decision.outer_step
        ):
            return
        if parse_ballot(fields) == roster.ballot:
            decision.avoid |= set(roster.peers) & {
                PeerId(p) for p in fields.texts("avoid", len(roster.peers))
            }
            self.fail(f"{peer}: {fields.text('reason', 500)}", tell=False)

    def on_peer_down(self, peer: PeerId, reason: str) -> None:
        """A peer is gone: it is not ready any more, and the ballot with it is over."""
        self.decision.readies.pop(peer, None)
        self.decision.told.discard(peer)
        self.decision.busy.discard(peer)
        for early in self._early.values():
            early.pop(peer, None)
        roster = self.decision.roster
        if roster is not None and peer in roster.peers:
            self.fail(f"{peer} is gone ({reason})")

    async def on_piece(self, peer: PeerId, fields: Fields, message: Message) -> None:
        """A `part` or `mean` chunk. One that is ahead of its roster waits for it (back-pressure)."""
        outer_step, ballot = fields.integer("outer_step", 1), parse_ballot(fields)
        give_up_s = self._now() + self._context.policy.deadline_s
        while True:
            decision = self.decision
            ours = (decision.outer_step, decision.promised)
            if (outer_step, ballot) == ours or (outer_step, ballot) < ours:
                break
            if self._now() >= give_up_s or outer_step > decision.outer_step + 1:
                return
            await self.changed.wait(give_up_s - self._now())
        transfer = self.decision.transfer
        if transfer is not None and (outer_step, ballot) == (
            self.decision.outer_step,
            self.decision.promised,
        ):
            receive = transfer.on_part if message.kind == "part" else transfer.on_mean
            receive(peer, fields.integer("chunk"), message.payload)

    # -- leading ---------------------------------------------------------------------------------

    def _take_ready(self, peer: PeerId, ready: Ready) -> None:
        if not self.decision.readies:
            self.decision.first_ready_s = self._now()
        self.decision.readies[peer] = ready
        self.decision.busy.discard(peer)
        self._absent.discard(peer)
        self._lead()
        self.changed.notify()

    def _lead(self) -> None:
        """Propose a roster if this peer leads and it is time."""
        decision, policy = self.decision, self._context.policy
        if self._context.peers.state.phase != "training" or not decision.readies or decision.task is not None:
            return
        if self.ahead():
            return  # first catch up; what others have committed is decided
        aligned, waiting = self._electorate()
        waited_s = self._now() - decision.first_ready_s
        order = leader_order(
            [*aligned, self._me], self._context.exchange.run_id, self._fragment, decision.outer_step
        )
        turn = int(waited_s / (LEADER_PATIENCE * policy.deadline_s))
        if order[turn % len(order)] != self._me or decision.busy & (aligned | {self._me}):
            return
        ready = {
            peer: said
            for peer, said in decision.readies.items()
            if said.previous == self._chain.head and (peer == self._me or peer in aligned)
        }
        late = waited_s >= policy.deadline_s
        missing = ({self._me} | waiting) - set(ready) - decision.avoid
        if not ready or (missing and not late):
            return
        self._absent |= missing
        willing = {peer: said for peer, said in ready.items() if peer not in decision.avoid}
        if not self._may_commit(len(willing)):
            willing = ready
        if self._may_commit(len(willing)):
            self._propose(willing)
        elif late:
            last = self._chain.last
            self._unformed(
                f"{len(willing)} of {len(aligned) + 1} live islands were ready within "
                f"{policy.deadline_s:g} s; needed {policy.min_participants}, partition = "
                f"{policy.partition}, {len(last.participants) if last else 0} took part before"
            )

    def ahead(self) -> list[Peer]:
        """Live peers that have committed more of this fragment, the furthest first."""
        peers = [
            peer
            for peer in self._context.peers.live()
            if peer.state.phase == "training"
            and self._fragment < len(peer.state.outer_steps)
            and peer.state.outer_steps[self._fragment] > self._chain.outer_step
        ]
        return sorted(peers, key=lambda peer: (-peer.state.outer_steps[self._fragment], peer.id))

    def _electorate(self) -> tuple[set[PeerId], set[PeerId]]:
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
            elif not self._committed_here:
                waiting.add(peer.id)
        return aligned, waiting - self._absent

    def _may_commit(self, participants: int) -> bool:
        policy, last = self._context.policy, self._chain.last
        if participants < max(1, policy.min_participants):
            return False
        return policy.partition != "majority" or last is None or 2 * participants > len(last.participants)

    def _propose(self, ready: dict[PeerId, Ready]) -> None:
        state = self._context.state
        accepted = [said.accepted for said in ready.values() if said.accepted is not None]
        newest = max(accepted, key=lambda pair: pair[0]) if accepted else None
        highest = max(self.decision.seen, *(said.promised for said in ready.values()))
        elements = state.fragments[self._fragment].elements
        roster = Roster(
            fragment=self._fragment,
            outer_step=self.decision.outer_step,
            ballot=Ballot(highest.attempt + 1, self._me),
            previous=self._chain.head,
            participants=tuple(
                Participant(peer, said.tokens, said.norm, said.inner_step)
                for peer, said in sorted(ready.items())
            ),
            stops=even_stops(elements, len(ready), self._context.codec.block_elements),
            chunk_elements=self._context.chunk_elements,
            entry=newest[1] if newest else None,
            accepted_in=newest[0] if newest else NO_BALLOT,
        )
        signature = self._context.exchange.sign(roster.signed_bytes(state.run_id)).hex()
        self._broadcast("roster", {"roster": roster.to_json(), "signature": signature})
        self._join(roster)

    def _unformed(self, reason: str) -> None:
        self._broadcast("unformed", {"reason": reason})
        self.decision.unformed = reason
        self.decision.readies.clear()
        self.changed.notify()

    # -- taking part -----------------------------------------------------------------------------

    def _join(self, roster: Roster) -> None:
        decision, contribution = self.decision, self.decision.contribution
        if roster.outer_step != decision.outer_step or roster.previous != self._chain.head:
            return
        if roster.ballot <= decision.promised:
            return
        decision.seen = max(decision.seen, roster.ballot)
        for peer in roster.peers:
            decision.readies.pop(peer, None)  # stale from here on: who leaves this ballot says so anew
        decision.busy = set(roster.peers)
        if self._me not in roster.peers or contribution is None:
            self.changed.notify()
            return
        accepted = decision.accepted
        finalises = roster.entry is not None
        if accepted is not None and roster.accepted_in < accepted.ballot:
            self.announce()  # the leader did not know; it will propose to finalise this one
            return
        member = next(m for m in roster.participants if m.peer == self._me)
        if not finalises and member.tokens != contribution.tokens:
            self.announce()
            return
        self._cancel_ballot()
        now = self._now()
        decision.promised, decision.roster = roster.ballot, roster
        decision.ballots += 1
        decision.progress_s = decision.joined_s = now
        if not finalises:
            # made at once, as pieces may come before the task's first step
            decision.transfer = self._make_transfer(roster, contribution)
        decision.task = asyncio.get_running_loop().create_task(self._run(roster, contribution))
        decision.task.add_done_callback(self._on_run_done)
        self.changed.notify()

    async def _run(self, roster: Roster, contribution: Contribution) -> None:
        """Run a ballot up to its vote; what goes wrong ends the ballot, not the peer."""
        transfer = self.decision.transfer
        try:
            if transfer is None:
                accepted = await self._finalise(roster)
            else:
                accepted = await self._reduce(roster, contribution, transfer)
        except NonFiniteError as error:
            self.decision.refusal = f"this island's pseudo-gradient is not finite: {error}"
            self.fail(str(error))
        except PeerFailedError as error:
            self.decision.avoid |= set(error.peers) - {self._me}
            self.fail(str(error))
        except (PeerUnreachableError, ProtocolError) as error:
            self.fail(str(error))
        else:
            decision = self.decision
            decision.accepted = accepted
            decision.accepted_s = decision.progress_s = self._now()
            vote: dict[str, Json] = {
                "ballot": roster.ballot.to_json(),
                "entry": accepted.entry.hash,
                "state": accepted.after.digest,
            }
            self._send(roster.peers, "vote", vote)
            own = (accepted.entry.hash, accepted.after.digest)
            decision.votes.setdefault(roster.ballot, {})[self._me] = own
            self._count_votes()

    def _on_run_done(self, task: asyncio.Task[None]) -> None:
        """A ballot that broke on a mistake of ours ends, too, and says so."""
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("fragment %d: the round broke", self._fragment, exc_info=error)
            if self.decision.task is task:
                self.fail(f"internal error: {error!r}")

    def _make_transfer(self, roster: Roster, contribution: Contribution) -> Transfer:
        context, state = self._context, self._context.state
        return Transfer(
            context.exchange,
            roster,
            values=contribution.values,
            residual=state.residuals[self._fragment],
            before=state.states[self._fragment],
            codec=context.codec,
            optimizer=state.optimizer,
            aggregation=state.aggregation,
            pool=context.pool,
            on_progress=self._progressed,
        )

    async def _reduce(self, roster: Roster, contribution: Contribution, transfer: Transfer) -> Accepted:
        staged = await transfer.run()
        entry = Entry(
            run_id=self._context.state.run_id,
            fragment=self._fragment,
            outer_step=roster.outer_step,
            participants=tuple((m.peer, m.tokens) for m in roster.participants),
            stops=roster.stops,
            chunk_elements=roster.chunk_elements,
            update_hash=staged.update_hash,
            update_bytes=len(staged.update),
            state_digest=staged.after.digest,
            previous=roster.previous,
        )
        return Accepted(
            roster.ballot,
            entry,
            staged.update,
            staged.after,
            staged.residual,
            staged.mean_norm,
            contribution,
            roster.participants,
        )

    async def _finalise(self, roster: Roster) -> Accepted:
        """Take over an update that was accepted in an earlier ballot, from this peer or another."""
        entry, accepted = roster.entry, self.decision.accepted
        assert entry is not None
        if accepted is not None and accepted.entry == entry:
            return replace(accepted, ballot=roster.ballot)
        return await self.fetch(entry, [p for p in roster.peers if p != self._me], roster.ballot)

    async def fetch(self, entry: Entry, donors: list[PeerId], ballot: Ballot) -> Accepted:
        """Fetch the update of an entry that follows this chain and recompute the state after it.

        Raises:
            PeerUnreachableError: no donor delivered it.
            ProtocolError: it does not follow, or does not give the state that it names.
        """
        context = self._context
        elements = context.state.fragments[self._fragment].elements
        chunks = -(-elements // entry.chunk_elements) + len(entry.stops)
        most = context.codec.max_payload_bytes(elements) + chunks * (4 + context.codec.max_payload_bytes(1))
        if entry.run_id != context.state.run_id or entry.fragment != self._fragment:
            raise ProtocolError("the entry is another run's or fragment's")
        if entry.previous != self._chain.head or entry.outer_step != self._chain.outer_step + 1:
            raise ProtocolError(
                f"entry {entry.outer_step} does not follow outer step {self._chain.outer_step}"
            )
        if entry.stops[-1] != elements or entry.update_bytes > most:
            raise ProtocolError(
                f"entry {entry.outer_step} names {entry.update_bytes} bytes for {elements} elements"
            )
        deadline_s = context.policy.deadline_s
        update = bytes(await context.blobs.fetch(entry.update_hash, entry.update_bytes, donors, deadline_s))
        loop = asyncio.get_running_loop()
        after = await loop.run_in_executor(context.pool, context.state.apply, entry, update)
        return Accepted(ballot, entry, update, after, None, None, None, ())

    def _progressed(self) -> None:
        self.decision.progress_s = self._now()

    # -- deciding --------------------------------------------------------------------------------

    def _count_votes(self) -> None:
        decision = self.decision
        roster, accepted = decision.roster, decision.accepted
        if roster is None or accepted is None or accepted.ballot != roster.ballot:
            return
        votes = decision.votes.get(roster.ballot, {})
        own = (accepted.entry.hash, accepted.after.digest)
        differing = [peer for peer in roster.peers if peer in votes and votes[peer] != own]
        if differing:
            # A vote that differs means that this ballot can't commit anywhere, so forgetting is safe.
            decision.accepted = None
            decision.refusal = (
                f"digests differ after outer step {roster.outer_step}: here {own[1][:12]}, "
                + ", ".join(f"{peer} {votes[peer][1][:12]}" for peer in differing)
            )
            self.fail(decision.refusal)
        elif all(peer in votes for peer in roster.peers):
            self._commit(accepted)

    def _follow_commit(self) -> None:
        """Commit what was accepted here as soon as a peer says that it has committed just that."""
        accepted = self.decision.accepted
        if accepted is None:
            return
        head = accepted.entry.hash
        for peer in self._context.peers.linked.values():
            heads = peer.state.heads
            if self._fragment < len(heads) and heads[self._fragment] == head:
                self._commit(accepted)
                return

    def _commit(self, accepted: Accepted) -> None:
        state = self._context.state
        state.commit(accepted.entry, accepted.update, accepted.after)
        if accepted.contribution is not None:
            state.residuals[self._fragment] = accepted.residual
        if accepted.contribution is self.decision.contribution:
            self.decision.contribution = None
        self._committed_here = True
        self.restart()
        self._on_commit(accepted.entry, accepted)

    def fail(self, reason: str, *, tell: bool = True) -> None:
        """End the ballot under way; the next one is formed by whoever leads."""
        decision = self.decision
        roster = decision.roster
        if roster is None:
            return
        logger.info("fragment %d, outer step %d: ballot ended: %s", self._fragment, roster.outer_step, reason)
        decision.failures.append(reason)
        if tell:
            avoid: list[Json] = [str(peer) for peer in sorted(decision.avoid & set(roster.peers))]
            body: dict[str, Json] = {
                "ballot": roster.ballot.to_json(),
                "reason": reason[:500],
                "avoid": avoid,
            }
            self._send(roster.peers, "abort", body)
        self._cancel_ballot()
        decision.first_ready_s = self._now()
        if not decision.refusal:
            self.announce()
        self.changed.notify()

    def _cancel_ballot(self) -> None:
        decision = self.decision
        task, transfer = decision.task, decision.transfer
        decision.task = decision.transfer = decision.roster = None
        if transfer is not None:
            asyncio.get_running_loop().create_task(transfer.close())
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def _end_ballot(self) -> None:
        task = self.decision.task
        self._cancel_ballot()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    # -- sending ---------------------------------------------------------------------------------

    def _address(self, body: dict[str, Json]) -> dict[str, Json]:
        return {"fragment": self._fragment, "outer_step": self.decision.outer_step, **body}

    def _broadcast(self, kind: str, body: dict[str, Json]) -> None:
        self._send(tuple(peer.id for peer in self._context.peers.live()), kind, body)

    def _send(self, peers: tuple[PeerId, ...], kind: str, body: dict[str, Json]) -> None:
        message = Message(kind, self._address(body))
        for peer in peers:
            if peer != self._me:
                self._context.peers.post(peer, message)
