"""An island's own part in the rounds: its contributions under way, and what its parameters stand on.

A commit may come while a contribution waits for it, or late, after its call has given up; the next call
counts it. Everything here runs in the exchange's event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lowcomm.algorithms.intervals import furthest
from lowcomm.islands.vectors import Difference, HostVector, Vector
from lowcomm.ledger.certificate import Certificate
from lowcomm.ledger.entry import ContributionId, Entry
from lowcomm.ledger.state import Position
from lowcomm.outer.at_risk import AtRisk
from lowcomm.outer.outcome import RoundOutcome, mean_cosine
from lowcomm.recovery.catching_up import CatchingUp
from lowcomm.recovery.forks import Branch
from lowcomm.recovery.member import Member
from lowcomm.rounds.contribution import Accepted, Contribution
from lowcomm.types import BallotEnd

GIVE_UP_DEADLINES = 4.0
"""After so many deadlines a round without commit is given up and training goes on."""


@dataclass(slots=True)
class _Call:
    """Commits that happen while a contribution waits, and where each has led."""

    task: asyncio.Task[Any]
    commits: list[tuple[Accepted, Position]] = field(default_factory=list)


class Submissions:
    """One island's calls for its fragments.

    Attributes:
        bases: the anchor that each fragment of the local parameters started from.
        standing: where each fragment stood then, for checkpoints.
    """

    def __init__(self, member: Member, catching_up: CatchingUp) -> None:
        self._member, self._catching_up, self._state = member, catching_up, member.state
        fragments = self._state.fragments
        self._calls: dict[int, _Call] = {}
        self._late: list[list[tuple[Accepted, Position]]] = [[] for _ in fragments]
        self._at_risk = [AtRisk(member.pool) for _ in fragments]
        self.bases: list[Vector] = [kept.anchor for kept in self._state.states]
        self.standing = [self._state.position(fragment.index) for fragment in fragments]

    async def close(self) -> None:
        """Cancel the calls under way."""
        waiting = [call.task for call in self._calls.values()]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    async def contribute(
        self, fragment: int, contribution: Contribution, *, last: bool = False
    ) -> RoundOutcome:
        """Take part in the next round of a fragment; returns when it has committed or is given up.

        Args:
            last: this peer trains no more; where the others have gone on without it, it waits for their next
                round.
        """
        self._member.raise_fatal()
        loop, traffic = asyncio.get_running_loop(), self._member.links.traffic
        began_s, sent, received = loop.time(), traffic.sent_bytes, traffic.received_bytes
        task = asyncio.current_task()
        assert task is not None
        fragment_round, call = self._member.rounds[fragment], _Call(task)
        self._calls[fragment] = call
        chain = self._state.chains[fragment]
        before: Vector = self.bases[fragment]
        base = before
        position = self.standing[fragment]
        call.commits, self._late[fragment] = self._late[fragment], []
        height = chain.outer_step - len(call.commits)
        credited = attempts = 0
        mine: Accepted | None = None
        reason, unusable = "", False
        ends: tuple[BallotEnd, ...] = ()
        me = self._member.signer.peer_id
        late_s = fragment_round.waiting_s
        try:
            residual_before = await self._residual_norm(fragment)
            if not call.commits:  # else what is left of it is announced below
                fragment_round.contribute(contribution)
            while mine is None:
                attempts = max(attempts, fragment_round.ballots)
                moved = missed = False
                while call.commits and mine is None:
                    (accepted, position), moved = call.commits.pop(0), True
                    own = accepted.contribution
                    if accepted.entry.contribution_of(me) == contribution.id:
                        mine = accepted
                        credited += contribution.tokens
                        continue
                    base = accepted.after.anchor
                    if own is not None:
                        # what was sent in an earlier call has been committed after all
                        credited += own.tokens
                        arrived = accepted.sent(own)
                        contribution = await self._remaining(contribution, own, arrived)
                        before = Difference(before, arrived)
                    else:
                        missed = True
                if mine is not None:
                    break
                if missed and not last and not fragment_round.is_called():
                    # to be ready now, while the others aren't, would be to commit without them, or to wait
                    reason = "the others committed without this island; it answers as soon as they are ready"
                    await fragment_round.abandon(answers=True)
                    break
                if moved:
                    fragment_round.contribute(contribution)
                    continue
                trouble, unusable = fragment_round.trouble
                reason = trouble.text if trouble else ""
                if not reason and loop.time() - began_s > GIVE_UP_DEADLINES * self._member.deadline_s:
                    ends += fragment_round.take_ends()
                    newest = "; ".join(end.reason.text for end in ends[-3:])
                    reason = f"no commit within {loop.time() - began_s:.0f} s: {newest}"
                if reason:
                    await fragment_round.abandon(answers=not unusable)
                    break
                if fragment_round.ahead():
                    sent_before = fragment_round.sent
                    moved_on = await self._catching_up.catch_up(fragment)
                    if moved_on.snapshot_bytes and not call.commits:
                        contribution, taken, tokens = await self._settle(
                            fragment, contribution, moved_on.branch, sent_before
                        )
                        credited += tokens
                        before = Difference(before, taken) if taken is not None else before
                        fragment_round.contribute(contribution)  # nobody has heard of it on this head
                    base, position = self._state.states[fragment].anchor, self._state.position(fragment)
                    continue
                await fragment_round.changed.wait(fragment_round.next_deadline_s())
                self._member.raise_fatal()
                fragment_round.check_stall()
                fragment_round.look()
        finally:
            del self._calls[fragment]
            self._late[fragment] = call.commits
        state = self._state.states[fragment]
        self.bases[fragment] = mine.after.anchor if mine else base
        return RoundOutcome(
            entry=mine.entry if mine else None,
            reason=reason,
            unusable=unusable,
            outer_step=mine.entry.outer_step if mine else chain.outer_step,
            before=before,
            values=mine.sent(contribution) if mine else HostVector(contribution.values),
            whole=mine is None or mine.unsent is None,
            base=base,
            after=self.bases[fragment],
            position=position,
            tokens=credited,
            adopted=max(chain.outer_step - height - (1 if mine else 0), int(base is not before)),
            attempts=max(attempts, 1),
            mean_norm=mine.mean_norm if mine else None,
            cosine=mean_cosine(mine.participants, mine.mean_norm) if mine else None,
            swarm_step=furthest([m.inner_step for m in mine.participants]) if mine else 0,
            speeds={member.peer: member.speed for member in mine.participants} if mine else {},
            total_tokens=chain.total_tokens,
            late_s=late_s,
            form_s=max(0.0, mine.joined_s - began_s) if mine else 0.0,
            transfer_s=max(0.0, mine.accepted_s - mine.joined_s) if mine else 0.0,
            round_s=loop.time() - began_s,
            bytes_sent=traffic.sent_bytes - sent,
            bytes_received=traffic.received_bytes - received,
            digest=mine.after.digest if mine else state.digest,
            head=mine.entry.hash if mine else chain.head,
            ballots=(*ends, *fragment_round.take_ends()),
            rejected=(*fragment_round.take_rejected(), *self._member.take_dropped()),
            residual_before=residual_before,
            residual_norm=await self._residual_norm(fragment),
        )

    async def _settle(
        self,
        fragment: int,
        contribution: Contribution,
        branch: Branch | None,
        sent: Mapping[ContributionId, Tensor],
    ) -> tuple[Contribution, Vector | None, int]:
        """A state was taken over: what is to be contributed now, after what was lost with the history before,
        and without what entries name that led to it.

        Returns:
            The contribution, what it is less than the one before (None for nothing), and tokens credited.
        """
        at_risk = self._at_risk[fragment]
        entries = branch.theirs if branch is not None else ()
        changes_sides = branch is not None and branch.mine is not None
        lost, tokens = await at_risk.lost() if changes_sides else (None, 0)
        named = at_risk.named(entries, self._member.signer.peer_id, sent)
        if branch is not None:
            at_risk.clear()
        done = sum(name.tokens for name, _ in named)
        if lost is None and not named:
            return contribution, None, 0

        def add() -> tuple[Contribution, Vector]:
            taken = torch.zeros_like(contribution.values)
            for _, values in named:
                taken.add_(values)
            if lost is not None:
                taken.sub_(lost)
            values = contribution.values - taken
            whole = contribution.offer
            return Contribution.of(
                values,
                start=max(0, whole.id.start - tokens + done),
                tokens=max(0, whole.tokens + tokens - done),
                norm=float(values.norm()),
                inner_step=whole.inner_step,
                speed=whole.speed,
            ), HostVector(taken)

        settled, taken = await self._member.in_pool(add)
        return settled, taken, done - tokens

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
        call = self._calls.get(fragment)
        commits = self._late[fragment] if call is None else call.commits
        commits.append((accepted, self._state.position(fragment)))

    def late_tokens(self, fragment: int) -> int:
        """Tokens of this island committed after its last call gave up; the next call counts them."""
        parts = [accepted.contribution for accepted, _ in self._late[fragment]]
        return sum(part.tokens for part in parts if part is not None)

    def take_late(self, fragment: int) -> list[Entry]:
        """The entries committed since the last call, which no call is to count any more."""
        late, self._late[fragment] = self._late[fragment], []
        return [accepted.entry for accepted, _ in late]

    def rebase(self) -> None:
        """The island's own parameters stand on the anchors as they are now."""
        for fragment, late in enumerate(self._late):
            self.stand(fragment)
            late.clear()

    def stand(self, fragment: int) -> None:
        """The island's own parameters stand, or are going to, on a fragment's anchor as it is now."""
        self.bases[fragment] = self._state.states[fragment].anchor
        self.standing[fragment] = self._state.position(fragment)
