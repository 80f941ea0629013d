"""An island's own part in the rounds: its contributions under way, and what became of those before.

A commit may come while a contribution waits for it, or late, after its call has given up; the next call
counts it. Everything here runs in the exchange's event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from lowcomm.algorithms.intervals import furthest
from lowcomm.islands.vectors import FP32_BYTES, Difference, HostVector, Vector
from lowcomm.ledger.certificate import Certificate
from lowcomm.ledger.entry import Entry
from lowcomm.ledger.state import Position
from lowcomm.outer.at_risk import AtRisk, Settlement
from lowcomm.outer.outcome import Landing, Movement, Outcome, mean_cosine
from lowcomm.outer.units import Units
from lowcomm.reasons import why_report
from lowcomm.recovery.catching_up import CatchingUp
from lowcomm.recovery.forks import Switch
from lowcomm.recovery.member import Member
from lowcomm.rounds.contribution import Accepted, Contribution
from lowcomm.types import BallotEnd, RoundReport

logger = logging.getLogger(__name__)

GIVE_UP_DEADLINES = 4.0
"""After so many deadlines a round without commit is given up and training goes on."""


@dataclass(frozen=True, slots=True)
class _Moved:
    """The chain moved.

    Attributes:
        position: where that has led.
        accepted: the entry that was committed; None where a state was taken over.
        settlement: of a state: what that has changed of this island's work; None where nobody knows.
    """

    position: Position
    accepted: Accepted | None = None
    settlement: Settlement | None = None


class _Call:
    """A contribution on its way: how the chain has moved meanwhile, and what is left of it.

    Attributes:
        before, base, position: see `Movement` and `Outcome`.
        height: the outer step at which it began.
        mine: the update that it is in.
        dropped: tokens that are lost.
        settled: progress beside this contribution's has come into the local parameters, or gone.
    """

    def __init__(
        self, task: asyncio.Task[Any], contribution: Contribution, standing: Position, began_s: float
    ) -> None:
        self.task, self.began_s = task, began_s
        self.contribution, self.position = contribution, standing
        self.norm = contribution.norm
        self.before: Vector = standing.state.anchor
        self.base = self.before
        self.moves: list[_Moved] = []
        self.height = _outer_step(standing)
        self.credited = self.dropped = self.attempts = 0
        self.mine: Accepted | None = None
        self.reason, self.unusable, self.settled = "", False, False
        self.ends: tuple[BallotEnd, ...] = ()
        self.late_s = 0.0


class Submissions:
    """One island's calls for its fragments."""

    def __init__(self, member: Member, catching_up: CatchingUp, units: Units) -> None:
        self._member, self._catching_up, self._state = member, catching_up, member.state
        self._units = units
        self._calls: dict[int, _Call] = {}
        self._late: list[list[_Moved]] = [[] for _ in self._state.fragments]
        self._at_risk = [AtRisk(member.pool) for _ in self._state.fragments]

    async def close(self) -> None:
        """Cancel the calls under way."""
        waiting = [call.task for call in self._calls.values()]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    async def contribute(
        self, fragment: int, contribution: Contribution, standing: Position, *, last: bool = False
    ) -> Outcome:
        """Take part in the next round of a fragment; returns when it has committed or is given up.

        Args:
            standing: what the contribution was taken against.
            last: this peer trains no more; where the others have gone on without it, it waits for their next
                round.
        """
        self._member.raise_fatal()
        loop, traffic = asyncio.get_running_loop(), self._member.links.traffic
        sent, received = traffic.sent_bytes, traffic.received_bytes
        task = asyncio.current_task()
        assert task is not None
        fragment_round = self._member.rounds[fragment]
        call = self._calls[fragment] = _Call(task, contribution, standing, loop.time())
        call.moves, self._late[fragment] = self._late[fragment], []
        call.late_s = fragment_round.waiting_s
        try:
            residual_before = await self._residual_norm(fragment)
            if not call.moves:  # else what is left of it is announced below
                self._announce(fragment, call)
            while call.mine is None and not call.reason:
                await self._advance(fragment, call, last=last)
        finally:
            del self._calls[fragment]
            self._late[fragment] = call.moves
        landing = self._landing(fragment, call)
        report = replace(
            landing.report,
            round_s=loop.time() - call.began_s,
            bytes_sent=traffic.sent_bytes - sent,
            bytes_received=traffic.received_bytes - received,
            residual_before=residual_before,
            residual_norm=await self._residual_norm(fragment),
        )
        after = call.mine.after.anchor if call.mine else call.base
        values = call.mine.sent(call.contribution) if call.mine else None
        movement = Movement(call.before, call.base, after, values)
        return Outcome(replace(landing, report=report), movement, call.position)

    async def _advance(self, fragment: int, call: _Call, *, last: bool) -> None:
        """Do the next thing: count moves, give up, catch up, or wait for something to happen."""
        fragment_round, loop = self._member.rounds[fragment], asyncio.get_running_loop()
        call.attempts = max(call.attempts, fragment_round.ballots)
        moved, missed = await self._count(fragment, call)
        if call.mine is not None:
            return
        if missed and not last and not fragment_round.is_called():
            # to be ready now, while the others aren't, would be to commit without them, or to wait
            call.reason = "the others committed without this island; it answers as soon as they are ready"
        elif moved and not call.reason:
            self._announce(fragment, call)
            return
        elif not call.reason:
            trouble, call.unusable = fragment_round.trouble
            call.reason = trouble.text if trouble else ""
            waited_s = loop.time() - call.began_s
            if not call.reason and waited_s > GIVE_UP_DEADLINES * self._member.deadline_s:
                call.ends += fragment_round.take_ends()
                newest = "; ".join(end.reason.text for end in call.ends[-3:])
                call.reason = f"no commit within {waited_s:.0f} s: {newest}"
        if call.reason:
            await fragment_round.abandon(answers=not call.unusable)
        elif fragment_round.ahead():
            await self._catching_up.catch_up(fragment)
        else:
            await fragment_round.changed.wait(fragment_round.next_deadline_s())
            self._member.raise_fatal()
            fragment_round.check_stall()
            fragment_round.look()

    def _announce(self, fragment: int, call: _Call) -> None:
        contribution = call.contribution
        self._at_risk[fragment].sends(contribution.id)
        if fragment == 0:
            offer = replace(contribution.offer, samples=self._units.announce(contribution.id))
            contribution = replace(contribution, offer=offer)
        self._member.rounds[fragment].contribute(contribution)

    async def _count(self, fragment: int, call: _Call) -> tuple[bool, bool]:
        """Count how the chain has moved; whether it has, and whether by any entry without this island."""
        moved = missed = False
        me = self._member.signer.peer_id
        while call.moves and call.mine is None:
            move, moved = call.moves.pop(0), True
            accepted, settlement = move.accepted, move.settlement
            call.position = move.position
            if accepted is not None and accepted.entry.contribution_of(me) == call.contribution.id:
                call.mine = accepted
                call.credited += call.contribution.tokens
                continue
            call.base = move.position.state.anchor
            if accepted is not None and (own := accepted.contribution) is not None:
                # what was sent in an earlier call has been committed after all
                call.credited += own.tokens
                arrived = accepted.sent(own)
                call.contribution = await self._remaining(call.contribution, own, arrived)
                call.before = Difference(call.before, arrived)
                continue
            if accepted is not None:
                settlement = self._at_risk[fragment].found(accepted.entry, me)
                missed = missed or settlement is None
            if settlement is not None:
                await self._settle(fragment, call, settlement)
        return moved, missed

    def _landing(self, fragment: int, call: _Call) -> Landing:
        """What is known when a call ends."""
        mine, chain = call.mine, self._state.chains[fragment]
        entry, participants = (mine.entry, mine.participants) if mine else (None, ())
        update_bytes = entry.update_bytes if entry else 0
        size_bytes = FP32_BYTES * self._state.fragments[fragment].elements
        fragment_round = self._member.rounds[fragment]
        report = RoundReport(
            outer_step=entry.outer_step if entry else chain.outer_step,
            fragment=fragment,
            committed=entry is not None,
            reason=call.reason,
            participants=tuple(peer for peer, _ in entry.participants) if entry else (),
            attempts=max(call.attempts, 1),
            form_s=max(0.0, mine.joined_s - call.began_s) if mine else 0.0,
            transfer_s=max(0.0, mine.accepted_s - mine.joined_s) if mine else 0.0,
            tokens=call.credited,
            round_tokens=sum(tokens for _, tokens in entry.participants) if entry else 0,
            compression_ratio=size_bytes / update_bytes if update_bytes else None,
            pseudo_gradient_norm=call.norm,
            mean_norm=mine.mean_norm if mine else None,
            cosine=mean_cosine(participants, mine.mean_norm) if mine else None,
            adopted=max(
                chain.outer_step - call.height - (1 if mine else 0), int(call.base is not call.before)
            ),
            digest=mine.after.digest if mine else self._state.states[fragment].digest,
            head=entry.hash if entry else chain.head,
            rejected=(*fragment_round.take_rejected(), *self._member.take_dropped()),
            total_tokens=chain.total_tokens,
            ballots=(*call.ends, *fragment_round.take_ends()),
        )
        peers = self._member.peers
        names = {**peers.names, self._member.signer.peer_id: peers.state.name}
        peers.say(trouble=why_report(report, names))
        return Landing(
            report,
            whole=mine is None or (mine.unsent is None and not call.settled),
            unusable=call.unusable,
            peer=self._member.signer.peer_id,
            swarm_step=furthest([member.inner_step for member in participants]) if mine else 0,
            speeds={member.peer: member.speed for member in participants},
            late_s=call.late_s,
            dropped=call.dropped,
        )

    async def _settle(self, fragment: int, call: _Call, settlement: Settlement) -> None:
        """Count what the history that was taken over credits.

        What was lost goes into the local parameters, and from there into the next contributions. What came
        back goes out of them; it may be in the contribution that is on its way, so that one is given up.
        """
        await settlement.summed()
        sent, kept = call.contribution, settlement.lost - settlement.dropped

        def settled() -> tuple[Tensor | None, Contribution]:
            taken = settlement.taken(sent.values, sent.tokens)
            start = max(0, sent.id.start - kept + settlement.back)  # what is credited before it
            return taken, Contribution.of(
                sent.values,
                start=start,
                tokens=sent.tokens,
                norm=sent.norm,
                inner_step=sent.inner_step,
                speed=sent.speed,
            )

        taken, call.contribution = await self._member.in_pool(settled)
        call.credited += settlement.back - settlement.lost
        call.dropped += settlement.dropped
        if taken is not None:
            call.before, call.settled = Difference(call.before, HostVector(taken)), True
        if settlement.lost:
            logger.warning(
                "fragment %d: another history stands; %d tokens of this island that it does not credit come "
                "in with the next rounds%s",
                fragment,
                kept,
                f", {settlement.dropped} are lost" if settlement.dropped else "",
            )
        if settlement.back:
            call.reason = "another history was taken over, which has a part of this contribution"

    async def _remaining(self, whole: Contribution, credited: Contribution, sent: Vector) -> Contribution:
        """What is left of a pseudo-gradient after `sent`, of an earlier part of it, was committed late."""

        def subtract() -> Contribution:
            values = whole.values - sent.load()
            offer = whole.offer
            return Contribution.of(
                values,
                start=credited.id.start + credited.tokens,
                tokens=max(0, whole.tokens - credited.tokens),
                norm=float(values.norm()),
                inner_step=offer.inner_step,
                speed=offer.speed,
            )

        return await self._member.in_pool(subtract)

    async def _residual_norm(self, fragment: int) -> float | None:
        """The L2 norm of what encodings of means have lost here; None without error feedback."""
        if not self._state.codec.error_feedback:
            return None
        kept = self._state.residuals[fragment]
        if kept is None:
            return 0.0
        return await asyncio.get_running_loop().run_in_executor(self._member.pool, kept.norm)

    def committed(
        self, accepted: Accepted, certificate: Certificate | None, sent: Sequence[Contribution]
    ) -> None:
        """An entry was committed here; whoever waits for it, or the next call, counts it.

        Args:
            sent: contributions to its outer step that others may hold.
        """
        fragment = accepted.entry.fragment
        if certificate is not None:
            self._at_risk[fragment].committed(accepted, certificate, sent)
        self._moved(fragment, _Moved(self._state.position(fragment), accepted))

    def switched(self, fragment: int, switch: Switch) -> None:
        """A state was taken over; whoever waits, or the next call, counts what that has changed."""
        settlement = self._at_risk[fragment].switched(switch, self._member.signer.peer_id)
        if fragment == 0:
            self._units.switched(switch, settlement.dropped if settlement else 0)
        self._moved(fragment, _Moved(self._state.position(fragment), settlement=settlement))

    def _moved(self, fragment: int, move: _Moved) -> None:
        call = self._calls.get(fragment)
        (self._late[fragment] if call is None else call.moves).append(move)

    def late_tokens(self, fragment: int) -> int:
        """Tokens of this island committed after its last call gave up; the next call counts them."""
        parts = [move.accepted.contribution for move in self._late[fragment] if move.accepted]
        return sum(part.tokens for part in parts if part is not None)

    def take_late(self, fragment: int) -> list[Entry]:
        """The entries committed since the last call, which no call is to count any more."""
        late, self._late[fragment] = self._late[fragment], []
        return [move.accepted.entry for move in late if move.accepted]


def _outer_step(position: Position) -> int:
    outer_step = position.chain["outer_step"]
    assert isinstance(outer_step, int)
    return outer_step
