"""The rounds of one fragment on one peer: hands events to the machine, and does what it says.

What is decided, and when, is `lowcomm.rounds.machine`'s; here messages are parsed and sent, promises written,
data exchanged and states swapped in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from lowcomm.clock import asleep_s
from lowcomm.errors import NonFiniteError, PeerUnreachableError, ProtocolError
from lowcomm.exchanges.base import Message
from lowcomm.exchanges.fields import Fields
from lowcomm.ledger.certificate import (
    Certificate,
    check_certificate,
    parse_ballot,
    parse_signature,
    vote_bytes,
)
from lowcomm.ledger.chain import Certified
from lowcomm.ledger.entry import ContributionId, Entry
from lowcomm.ledger.ranges import check_cut
from lowcomm.ledger.update import Update
from lowcomm.peers.failure_detector import AdaptiveTimeout
from lowcomm.peers.notice import Notice
from lowcomm.peers.peer import Peer
from lowcomm.rounds.claims import ClaimJudge
from lowcomm.rounds.context import Context
from lowcomm.rounds.contribution import Accepted, Contribution
from lowcomm.rounds.following import Following
from lowcomm.rounds.machine import RoundMachine
from lowcomm.rounds.roster import Roster, parse_signed_roster
from lowcomm.rounds.transfer import BadContributionError, PeerFailedError, Transfer
from lowcomm.rounds.updates import fetch_update, make_transfer, reduce_update
from lowcomm.rounds.values import (
    Action,
    AskForCertificate,
    Call,
    CastVote,
    Commit,
    Drop,
    Ended,
    Finish,
    Forget,
    Keep,
    Propose,
    Record,
    Reduce,
    Reject,
    Tell,
    TellDecided,
    Vote,
    decided_json,
    parse_decided,
    parse_ready,
    parse_reason,
)
from lowcomm.types import BallotEnd, Digest, Json, PeerId, Reason

logger = logging.getLogger(__name__)

STALL_LEAST_S = 5.0
"""A ballot that stands still is never ended sooner, unless somebody is gone or silent."""
LOOK_S = 1.0
"""A round that is not under way is looked at so often."""
MAX_ENDS = 16
"""Ballots that are kept for the report of a round."""
PROGRESS_BYTES = 1 << 16
"""So many bytes to or from its participants are progress; signs of life are far less."""

AskEntries = Callable[[PeerId, int], Coroutine[Any, Any, Sequence[Certified]]]
"""The entries after this peer's head in a fragment, as another peer has them."""


class FragmentRound:
    """One fragment's rounds on one peer; call only from the exchange's loop.

    Args:
        fragment: its index.
        on_commit: called with each entry that was committed here, and what this peer has sent to it.
        ask_entries: for the certificate of what others have committed.

    Attributes:
        call: what others want with the fragment; may be read from any thread.
    """

    def __init__(
        self,
        context: Context,
        fragment: int,
        on_commit: Callable[[Accepted, Certificate, Sequence[Contribution]], None],
        ask_entries: AskEntries,
    ) -> None:
        self._context, self._fragment = context, fragment
        self._on_commit, self._ask_entries = on_commit, ask_entries
        self._judge = ClaimJudge(context.policy.limits)
        self._machine: RoundMachine | None = None
        self.following = Following(context, fragment)
        self.changed = Notice()
        self.call = Call(ahead=False, ready=False)
        self._sent: dict[ContributionId, Contribution] = {}
        self._accepted: dict[Digest, Accepted] = {}
        self._ends: list[BallotEnd] = []
        self._decided: tuple[Digest, Certificate] | None = None
        self._promised_update: Update | None = None
        self._transfer: Transfer | None = None
        self._work: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._standstill: AdaptiveTimeout | None = None
        self._moved_bytes = 0
        self._closed = False

    @property
    def machine(self) -> RoundMachine:
        """What decides; it begins where the chain is."""
        if self._machine is None:  # not sooner: a peer may have no name before its exchange has started
            context = self._context
            rules, slot = context.rules(self._fragment), context.slot(self._fragment)
            self._machine = RoundMachine(context.exchange.peer_id, rules, slot, self._judge)
        return self._machine

    # -- called by the node --------------------------------------------------------------------------

    def is_called(self) -> bool:
        """Whether others have gone past the next outer step, or are ready for it and enough are live."""
        return bool(self.ahead()) or self.machine.assembly.may_be_formed()

    @property
    def waiting_s(self) -> float:
        """For how long other peers have been ready for the next outer step."""
        assembly = self.machine.assembly
        return _now_s() - assembly.first_ready_s if assembly.is_open else 0.0

    @property
    def trouble(self) -> tuple[Reason | None, bool]:
        """Why the round that is waited for comes to nothing, and whether that is this island's own part."""
        refusal = self.machine.decision.refusal
        return refusal or self.machine.assembly.unformed, refusal is not None

    @property
    def outer_step(self) -> int:
        """The one that is decided next."""
        return self.machine.decision.slot.outer_step

    @property
    def is_idle(self) -> bool:
        """Whether no ballot is under way."""
        return self.machine.decision.under_way is None

    @property
    def ballots(self) -> int:
        """How many this outer step has had here."""
        return self.machine.decision.ballots

    def take_ends(self) -> tuple[BallotEnd, ...]:
        """Ballots that came to nothing since the last call."""
        taken, self._ends = tuple(self._ends), []
        return taken

    @property
    def contributions(self) -> list[Contribution]:
        """What this peer has sent to this outer step, and others may hold."""
        return [self._sent[name] for name in self.machine.decision.sent if name in self._sent]

    @property
    def sent(self) -> dict[ContributionId, Tensor]:
        """The values of those."""
        return {contribution.id: contribution.values for contribution in self.contributions}

    def _note_call(self) -> None:
        """What others want, for the training thread; once this island is ready it asks for that no more."""
        ahead = bool(self.ahead())
        ready = ahead or (self.machine.decision.offer is None and self.machine.assembly.may_be_formed())
        if ahead != self.call.ahead or ready != self.call.ready:
            self.call = Call(ahead, ready)

    def look(self) -> None:
        """The swarm changed, or time has passed."""
        self._refresh()
        self.machine.look(_now_s())
        self._act()
        for peer, since_s in self.machine.assembly.tardy():
            self._context.peers.heartbeats.ask_after(peer, since_s, _now_s())

    def contribute(self, contribution: Contribution) -> None:
        """This peer is due."""
        self._sent[contribution.id] = contribution
        self._refresh()
        goes_as = self._sent.get(self.machine.goes_as(contribution.id), contribution)
        offer = replace(contribution.offer, samples=goes_as.offer.samples)
        self.machine.contribute(offer, _now_s())
        self._act()

    def next_deadline_s(self) -> float:
        """When to look again although nothing has come: seconds from now."""
        decision, deadline_s = self.machine.decision, self._context.policy.deadline_s
        since_s = self.machine.assembly.first_ready_s
        if decision.under_way is not None:
            since_s, deadline_s = decision.under_way.progress_s, self._stall_s()
        waited_s = _now_s() - since_s
        wait_s = deadline_s - waited_s if waited_s < deadline_s else deadline_s / 4
        if decision.under_way is None:
            wait_s = min(wait_s, LOOK_S)  # the grace of somebody that is absent may be over
        return max(0.05, wait_s)

    async def abandon(self, *, answers: bool) -> None:
        """Give up on this round, and say so. Training goes on; promises and an accepted update stay.

        Args:
            answers: this peer will be ready as soon as others are, so it is worth waiting for.
        """
        work = self._work
        if self._machine is not None:
            self._machine.abandon(_now_s(), answers=answers)
            self._act()
        await _ended(work)

    def restart(self) -> None:
        """The chain moved by other means (catch-up, snapshot, checkpoint): decide what follows it."""
        self._accepted.clear()
        self.renew()

    def renew(self) -> None:
        """Decide what follows the chain; where that is the outer step of before, others may decide it now."""
        self.machine.begin(self._context.slot(self._fragment), _now_s())
        self._act()

    async def recall(self) -> None:
        """Read what an earlier life of this peer has promised; it binds as soon as that step is reached.

        Raises:
            ProtocolError: it can't be read.
        """
        promises, loop = self._context.promises, asyncio.get_running_loop()
        if promises is None:
            return
        record = await loop.run_in_executor(self._context.pool, promises.load, self._fragment)
        if record is not None:
            logger.info(
                "fragment %d: this island has taken part in outer step %d before, and stands by it",
                self._fragment,
                record.outer_step,
            )
            if record.accepted is not None:
                self._promised_update = await loop.run_in_executor(
                    self._context.pool, promises.load_update, record.accepted[1]
                )
            self.machine.recall(record)
            self._act()

    def halt(self) -> None:
        """This peer takes no part any more."""
        self.machine.halt()
        self._act()

    async def close(self) -> None:
        """End the ballot under way."""
        work = self._work
        self._closed = True
        if self._machine is not None:
            self.halt()
        for task in self._tasks:
            task.cancel()
        await _ended(work, *self._tasks)

    def ahead(self) -> list[Peer]:
        """Live peers that have committed more of this fragment, the furthest first."""
        return self.following.ahead()

    def find_update(self, name: Digest) -> Update | None:
        """The update with this hash, where it is accepted here and not committed yet."""
        held = [accepted.update for accepted in self._accepted.values()]
        known = [*held, *([self._promised_update] if self._promised_update else [])]
        return next((update for update in known if update.digest == name), None)

    # -- messages ------------------------------------------------------------------------------------

    def on_ready(self, peer: PeerId, fields: Fields) -> None:
        """A peer is due."""
        self._refresh()
        self.machine.on_ready(peer, fields.integer("outer_step", 1), parse_ready(fields), _now_s())
        self._act()

    def on_unready(self, peer: PeerId, fields: Fields) -> None:
        """A peer has given up on a round."""
        self._refresh()
        answers = fields.integer("answers", 0, 1) > 0
        self.machine.on_unready(peer, fields.integer("outer_step", 1), answers=answers)
        self._act()

    def on_opened(self, peer: PeerId, fields: Fields) -> None:
        """A peer that leads the next outer step says that others are ready for it."""
        self._refresh()
        self.machine.on_opened(peer, fields.integer("outer_step", 1), fields.digest("previous"), _now_s())
        self._act()

    def on_decided(self, peer: PeerId, fields: Fields) -> None:
        """The leader of a ballot has gathered the votes; kept until the update is held, if it is not yet.

        Raises:
            ProtocolError: they prove nothing.
        """
        outer_step = fields.integer("outer_step", 1)
        roster = self.machine.joined_roster(outer_step, parse_ballot(fields))
        if roster is not None and peer == roster.ballot.leader:
            self._decided = parse_decided(fields, roster)
            self._be_decided()

    def _be_decided(self) -> None:
        """Commit what the leader says is decided, where that is held here.

        Raises:
            ProtocolError: it is not proven.
        """
        if self._decided is None or self._decided[0] not in self.machine.decision.voted:
            return
        (name, certificate), self._decided = self._decided, None
        entry, decision = self.machine.decision.voted[name], self.machine.decision
        self.check(Certified(entry, certificate), decision.slot.electorate)
        self.on_certificate(entry, certificate)

    def on_unformed(self, peer: PeerId, fields: Fields) -> None:
        """The leader found too few participants by the deadline."""
        text = fields.text("reason", 1_000)
        self.machine.on_unformed(peer, fields.integer("outer_step", 1), text, _now_s())
        self._act()

    def on_roster(self, peer: PeerId, fields: Fields) -> None:
        """A leader's proposal.

        Raises:
            ProtocolError: it is not the sender's to propose, or not signed by it.
        """
        roster = parse_signed_roster(fields, peer, self._context.exchange)
        if roster.fragment != self._fragment:
            raise ProtocolError(f"roster of {peer}: it names fragment {roster.fragment}")
        check_cut(roster.stops, roster.chunk_elements, self._context.state.fragments[self._fragment].elements)
        self._refresh()
        self.machine.on_roster(roster, _now_s())
        self._act()

    def on_vote(self, peer: PeerId, fields: Fields) -> None:
        """A participant holds the whole update and names it.

        Raises:
            ProtocolError: the signature isn't its own.
        """
        outer_step, ballot = fields.integer("outer_step", 1), parse_ballot(fields)
        absent = tuple(PeerId(p) for p in fields.texts("absent", 4_096))
        mandate = fields.digest("mandate") if fields.has("mandate") else None
        signature = parse_signature(fields.text("signature"))
        vote = Vote(fields.digest("entry"), fields.digest("state"), signature, absent, mandate)
        exchange = self._context.exchange
        signed = vote_bytes(exchange.run_id, self._fragment, outer_step, ballot, absent, vote.entry, mandate)
        if not exchange.verify(peer, signed, vote.signature):
            raise ProtocolError(f"vote of {peer}: the signature is not its own")
        machine, transfer = self.machine, self._transfer
        machine.on_vote(peer, outer_step, ballot, vote, _now_s())
        under = machine.decision.under_way
        if under is not None and under.spread and not under.voted and transfer is not None:
            # one that has all data has waited for as long as a ballot may stand still
            parts, means = transfer.missing_parts_from(), transfer.missing_means_from()
            machine.tick(_now_s(), self._stall_s() / 2, parts, means)
        self._act()

    def on_joined(self, peer: PeerId, fields: Fields) -> None:
        """A participant has joined a ballot that finishes an update."""
        outer_step, ballot = fields.integer("outer_step", 1), parse_ballot(fields)
        self.machine.on_joined(peer, outer_step, ballot, fields.digest("entry"), _now_s())
        self._act()

    def on_abort(self, peer: PeerId, fields: Fields) -> None:
        """A participant ended a ballot."""
        outer_step, ballot = fields.integer("outer_step", 1), parse_ballot(fields)
        rejected = [PeerId(p) for p in fields.texts("rejected", 4_096)]
        machine, now_s = self.machine, _now_s()
        if self._transfer is not None:
            owing = self._transfer.missing_parts_from() or self._transfer.missing_means_from()
            machine.standing_still(now_s, self._stall_s(), owing)
        machine.on_abort(peer, outer_step, ballot, parse_reason(fields), rejected, now_s)
        self._act()

    def on_rejected(self, peer: PeerId, fields: Fields) -> None:
        """A peer doesn't accept this island's contribution; it says why."""
        reason = f"{peer} rejected this island's contribution: {fields.text('reason', 500)}"
        logger.warning("fragment %d: %s", self._fragment, reason)
        self._judge.refused_by(reason)

    async def on_piece(self, peer: PeerId, fields: Fields, message: Message) -> None:
        """A `part` or `mean` chunk. One that is ahead of its roster waits for it (back-pressure)."""
        asked = (fields.integer("outer_step", 1), parse_ballot(fields))
        give_up_s = _now_s() + self._context.policy.deadline_s
        while True:
            decision = self.machine.decision
            here = (decision.slot.outer_step, decision.promised)
            if asked < here or (asked == here and (self._transfer is not None or self.is_idle)):
                break
            if _now_s() >= give_up_s or asked[0] > here[0] + 1:
                return
            await self.changed.wait(give_up_s - _now_s())
        if self._transfer is not None and asked == here:
            chunk, given = fields.integer("chunk"), fields.text("sum")
            self._transfer.on_piece(peer, message.kind, chunk, given, message.payload)

    def on_again(self, peer: PeerId, fields: Fields) -> None:
        """A chunk came there damaged."""
        decision = self.machine.decision
        asked = (fields.integer("outer_step", 1), parse_ballot(fields))
        if self._transfer is not None and asked == (decision.slot.outer_step, decision.promised):
            self._transfer.send_again(peer, fields.text("piece"), fields.integer("chunk"))

    def on_peer_down(self, peer: PeerId, reason: str) -> None:
        """A peer is gone."""
        self._context.rates.forget(peer)
        self._refresh()
        self.machine.peer_down(peer, reason, _now_s())
        self._act()

    def on_silent(self, peer: PeerId, reason: str) -> None:
        """A peer says nothing any more."""
        self._refresh()
        self.machine.peer_silent(peer, reason, _now_s())
        self._act()

    def check(self, certified: Certified, electorate: Collection[PeerId] | None) -> Certificate:
        """The certificate of an entry, if it proves it.

        Args:
            electorate: who may decide it; None where that isn't known.

        Raises:
            ProtocolError: it says what is missing.
        """
        entry, certificate = certified
        if certificate is None:
            raise ProtocolError(f"fragment {entry.fragment}, outer step {entry.outer_step}: no certificate")
        policy = self._context.policy
        check_certificate(
            entry,
            certificate,
            electorate,
            self._context.exchange.verify,
            majority=policy.partition == "majority",
            min_participants=policy.min_participants,
            authority=self._context.authority,
        )
        return certificate

    def on_certificate(self, entry: Entry, certificate: Certificate) -> bool:
        """Commit what another peer has committed, if it was voted for here; the certificate is checked."""
        if entry.hash not in self._accepted or not self.machine.on_certificate(entry, certificate, _now_s()):
            return False  # what an earlier life has voted for is fetched like any other
        self._act()
        return True

    def _refresh(self) -> None:
        """Let the machine see the swarm as it is."""
        self._judge.asleep_s = asleep_s()
        assembly = self.machine.assembly
        assembly.view = self._context.view()
        assembly.rates = self._context.rates.told(assembly.slot.electorate)
        assembly.following = self.following.is_led()

    # -- time ----------------------------------------------------------------------------------------

    def check_stall(self) -> None:
        """End a ballot in which nothing has moved for longer than it ever takes."""
        under, transfer = self.machine.decision.under_way, self._transfer
        if under is None:
            return
        by_peer = self._context.exchange.traffic.by_peer
        moved = sum(by_peer.get(peer, 0) for peer in under.roster.peers)
        if not under.voted and moved - self._moved_bytes >= PROGRESS_BYTES:
            self._progressed()  # pieces of chunks are progress, too: a slow link is no stall
        if moved - self._moved_bytes >= PROGRESS_BYTES or moved < self._moved_bytes:
            self._moved_bytes = moved
        parts = transfer.missing_parts_from() if transfer else []
        means = transfer.missing_means_from() if transfer else []
        self.machine.tick(_now_s(), self._stall_s(), parts, means)
        self._act()

    def _progressed(self) -> None:
        """The ballot under way has moved."""
        now_s = _now_s()
        self.machine.moved(now_s)
        if self._standstill is not None and self._work is not None and not self._work.done():
            self._standstill.beat(now_s)  # before work has begun there was no standstill that tells anything

    def _stall_s(self) -> float:
        """How long a ballot may stand still: as judged by earlier ones, at most the deadline."""
        return self._standstill.limit_s if self._standstill else self._context.policy.deadline_s

    # -- doing what the machine says -----------------------------------------------------------------

    def _act(self) -> None:
        machine = self.machine
        while actions := machine.take_actions():
            for action in actions:
                self._do(action)
        keep = {*machine.decision.sent, *([machine.decision.offer.id] if machine.decision.offer else [])}
        for unknown in [name for name in self._sent if name not in keep]:
            del self._sent[unknown]
        self._note_call()
        self.changed.notify()

    def _do(self, action: Action) -> None:
        match action:
            case Tell(peers, kind, body):
                self._send(peers, kind, body)
            case Propose(roster):
                exchange = self._context.exchange
                signature = exchange.sign(roster.signed_bytes(exchange.run_id)).hex()
                live = tuple(peer.id for peer in self._context.peers.live())
                self._send(live, "roster", {"roster": roster.to_json(), "signature": signature})
            case Keep(record):
                self._spawn(self._keep(record))
            case Forget():
                self._forget()
            case Reduce(roster, sent):
                self._reduce(roster, self._sent[sent])
            case Finish(roster):
                self._begin_work(roster, self._finish(roster))
            case Drop(_):
                self._drop()
            case Ended(end):
                self._note_end(end)
            case CastVote(roster, entry, to):
                self._vote(roster, entry, to)
            case TellDecided(roster, entry, certificate):
                self._send(roster.peers, "decided", decided_json(roster, entry.hash, certificate))
            case Commit(entry, certificate):
                self._commit(entry, certificate)
            case Reject(peer, reason, accuser):
                self._reject(peer, reason, accuser)
            case AskForCertificate(peer):
                self._spawn(self._ask_for_certificate(peer))

    def _note_end(self, end: BallotEnd) -> None:
        logger.info(
            "fragment %d, outer step %d: ballot ended: %s", self._fragment, self.outer_step, end.reason.text
        )
        self._ends.append(end)
        del self._ends[:-MAX_ENDS]

    async def _keep(self, record: Record) -> None:
        context = self._context
        held = self._accepted.get(record.accepted[1].hash) if record.accepted else None
        update = held.update if held is not None and context.policy.partition == "majority" else None
        if context.promises is not None:
            loop = asyncio.get_running_loop()
            try:
                if context.redo is not None:  # this record replaces that of the outer step before
                    await loop.run_in_executor(context.pool, context.redo.flush)
                await loop.run_in_executor(context.pool, context.promises.save, record, update)
            except (OSError, ProtocolError) as error:
                why = (error.strerror if isinstance(error, OSError) else "") or str(error)
                self.machine.on_not_kept(record, why, _now_s())
                self._act()
                return
        self.machine.on_kept(record, _now_s())
        self._act()

    def _forget(self) -> None:
        logger.warning(
            "fragment %d: nobody who took part in this island's last outer step has that history any more; "
            "the run goes on from outer step %d",
            self._fragment,
            self.outer_step - 1,
        )
        if self._context.promises is not None:
            self._context.promises.forget(self._fragment)

    def _reduce(self, roster: Roster, contribution: Contribution) -> None:
        # made at once, as pieces may come before the task's first step
        self._transfer = make_transfer(self._context, roster, contribution, self._judge, self._progressed)
        self._begin_work(roster, self._exchange(roster, contribution, self._transfer))

    def _begin_work(self, roster: Roster, work: Coroutine[Any, Any, None]) -> None:
        now_s = _now_s()
        if self._standstill is None:
            self._standstill = AdaptiveTimeout(STALL_LEAST_S, self._context.policy.deadline_s, now_s)
        self._standstill.resume(now_s)
        self._work = asyncio.get_running_loop().create_task(self._guard(roster, work))

    async def _guard(self, roster: Roster, work: Coroutine[Any, Any, None]) -> None:
        """What goes wrong in a ballot ends the ballot, not the peer.

        A mistake of ours, or a lack of memory, ends this peer's round, too: ready again at once, it could
        break the next ballot in the same way, and so on without an end.
        """
        hollow = False
        try:
            await work
            return
        except NonFiniteError as error:
            hollow = True
            reason = Reason("own", f"this island's pseudo-gradient is not finite: {error}")
        except PeerFailedError as error:
            bad = isinstance(error, BadContributionError)
            reason = Reason("bad" if bad else "gone", str(error), tuple(error.peers))
        except (PeerUnreachableError, ProtocolError) as error:
            reason = Reason("fetch", str(error), roster.holders)
        except Exception as error:  # the boundary of the task
            logger.error("fragment %d: the round broke", self._fragment, exc_info=error)
            reason = Reason("own", f"this island's part in the round broke: {error!r}")
        self.machine.on_broken(roster.ballot, reason, _now_s(), hollow=hollow)
        self._act()

    async def _exchange(self, roster: Roster, contribution: Contribution, transfer: Transfer) -> None:
        self._stage(await reduce_update(self._context, roster, contribution, transfer))

    async def _finish(self, roster: Roster) -> None:
        """Take over an update that was accepted in an earlier ballot, from this peer or another."""
        entry = roster.entry
        assert entry is not None
        held = self._accepted.get(entry.hash)
        if held is None:
            donors = [*roster.holders, *(peer for peer in roster.peers if peer not in roster.holders)]
            held = await self.fetch(
                entry, [peer for peer in donors if peer != self._context.exchange.peer_id]
            )
        self._stage(Accepted(
            roster.ballot, held.entry, held.update, held.after, held.residual, held.unsent, held.mean_norm,
            held.contribution, held.participants,
        ))  # fmt: skip

    def _stage(self, accepted: Accepted) -> None:
        self._accepted[accepted.entry.hash] = accepted
        self._progressed()
        self.machine.on_staged(accepted.ballot, accepted.entry, _now_s())
        for head in [head for head in self._accepted if head not in self.machine.decision.voted]:
            del self._accepted[head]
        self._act()
        self._be_decided()

    async def fetch(self, entry: Entry, donors: list[PeerId], held: Update | None = None) -> Accepted:
        """The update of an entry that follows this chain, and what this peer had put into it, if anything.

        What the encodings lost is gone, and the residual before it has been sent, so there is none.

        Args:
            held: the update, where it is here.

        Raises:
            PeerUnreachableError, ProtocolError: see `fetch_update`.
        """
        mine = entry.contribution_of(self._context.exchange.peer_id)
        own = self._sent.get(mine) if mine else None
        held = held or self._promised_update
        return await fetch_update(self._context, self._fragment, entry, donors, own, held)

    def _drop(self) -> None:
        work, transfer = self._work, self._transfer
        self._work = self._transfer = None
        if transfer is not None:
            self._spawn(transfer.close())
        if work is not None and work is not asyncio.current_task():
            work.cancel()

    def _vote(self, roster: Roster, entry: Entry, to: Sequence[PeerId]) -> None:
        exchange, absent, mandate = self._context.exchange, roster.absent, roster.mandate
        signed = vote_bytes(
            exchange.run_id, self._fragment, roster.outer_step, roster.ballot, absent, entry.hash, mandate
        )
        vote = Vote(entry.hash, entry.state_digest, exchange.sign(signed), absent, mandate)
        body: dict[str, Json] = {
            "ballot": roster.ballot.to_json(),
            "absent": [str(peer) for peer in roster.absent],
            "entry": vote.entry,
            "state": vote.state,
            "signature": vote.signature.hex(),
            **({"mandate": mandate} if mandate else {}),
        }
        self._send(to, "vote", body)
        self.machine.on_vote(exchange.peer_id, roster.outer_step, roster.ballot, vote, _now_s())

    def _commit(self, entry: Entry, certificate: Certificate) -> None:
        state, machine, sent = self._context.state, self.machine, self.contributions
        joined_s, accepted_s = machine.decision.joined_s, machine.decision.accepted_s
        accepted = replace(self._accepted[entry.hash], joined_s=joined_s, accepted_s=accepted_s)
        state.commit(entry, accepted.update, accepted.after, certificate)
        if accepted.contribution is not None:
            state.residuals[self._fragment] = accepted.residual
        machine.committed(entry, accepted.participants, mine=accepted.contribution is not None)
        self._promised_update = None
        self.restart()
        self._on_commit(accepted, certificate, sent)

    def _reject(self, peer: PeerId, reason: str, accuser: PeerId | None) -> None:
        """Leave a peer out of this outer step and tell it why; after too many times it is out.

        Args:
            accuser: who saw it, if not this peer itself.
        """
        peers, me = self._context.peers, self._context.exchange.peer_id
        if peer == me or peer in peers.banned:
            return
        called = peers.called(peer)
        logger.warning("fragment %d: contribution of %s rejected: %s", self._fragment, called, reason)
        self.machine.assembly.reject(peer)
        if accuser is None:
            self._send((peer,), "rejected", {"reason": reason[:500]})
        company = len(peers.live()) > 1
        out = self._judge.reject(peer, reason, accuser or me, company=company)
        if out or self._judge.insists(peer, me):
            peers.ban(peer, f"contributions were rejected too often, last: {reason}")

    def take_rejected(self) -> tuple[str, ...]:
        """Contributions of others that were rejected since the last call, as `peer: reason`."""
        return self._judge.take_rejected()

    async def _ask_for_certificate(self, peer: PeerId) -> None:
        try:
            for certified in (await self._ask_entries(peer, self._fragment))[:1]:
                certificate = self.check(certified, self.machine.decision.slot.electorate)
                self.on_certificate(certified.entry, certificate)
        except (PeerUnreachableError, ProtocolError):
            return  # catching up asks others, too

    def _send(self, peers: Sequence[PeerId], kind: str, body: dict[str, Json]) -> None:
        """Send to `peers`, this one left out, addressed to this fragment and outer step."""
        address: dict[str, Json] = {"fragment": self._fragment, "outer_step": self.outer_step}
        message = Message(kind, {**address, **body})
        for peer in peers:
            if peer != self._context.exchange.peer_id:
                self._context.peers.post(peer, message)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        if self._closed:  # what still comes over links that are about to go begins nothing
            coroutine.close()
            return
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


async def _ended(*tasks: asyncio.Task[None] | None) -> None:
    await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)
