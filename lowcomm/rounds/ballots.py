"""One ballot: joining it, running it up to the vote, and counting the votes.

Joining a ballot is a promise never to vote in a lower one. Who has accepted an update joins no
later ballot but one that finalises it (or a newer one).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import replace

from lowcomm.errors import NonFiniteError, PeerUnreachableError, ProtocolError
from lowcomm.exchanges.fields import Fields
from lowcomm.rounds.decision import Accepted, Contribution
from lowcomm.rounds.promises import Promise
from lowcomm.rounds.roster import Roster, parse_ballot
from lowcomm.rounds.topic import Topic
from lowcomm.rounds.transfer import BadContributionError, PeerFailedError
from lowcomm.rounds.updates import fetch_own, make_transfer, reduce_update
from lowcomm.types import Json, PeerId

logger = logging.getLogger(__name__)

REDUCER_PATIENCE = 1.5
"""Who lacks only means waits so many times as long: the reducer may lack parts, and knows whose."""
MAX_VOTED_BALLOTS = 64
MAX_VOTED_UPDATES = 2
"""Each holds a whole state of the fragment."""


class Ballots:
    """One fragment's ballots on one peer; call only from the exchange's loop.

    Args:
        announce: says anew that this peer is ready, with its promises.
        commit: called with an update that all participants have voted for.
    """

    def __init__(
        self, topic: Topic, announce: Callable[[], None], commit: Callable[[Accepted], None]
    ) -> None:
        self._topic = topic
        self._announce, self._commit = announce, commit

    def join(self, roster: Roster) -> None:
        """Take part in a ballot, if no promise forbids and this peer is in it."""
        decision, contribution = self._topic.decision, self._topic.decision.contribution
        if roster.outer_step != decision.outer_step or roster.previous != self._topic.chain.head:
            return
        if roster.ballot <= decision.promised:
            if roster.ballot != decision.promised:
                self.decline(roster, f"it has joined a later ballot, {decision.promised.attempt}")
                if decision.task is None:
                    self._announce()
            return
        decision.seen = max(decision.seen, roster.ballot)
        for peer in roster.peers:
            decision.readies.pop(peer, None)  # stale from here on: who leaves this ballot says so anew
        decision.busy = set(roster.peers)
        if self._topic.me not in roster.peers or contribution is None:
            self.decline(roster, "it has given up on this round")
            self._topic.changed.notify()
            return
        accepted = decision.accepted
        finalises = roster.entry is not None
        if accepted is not None and roster.accepted_in < accepted.ballot:
            self._announce()  # the leader did not know; it will propose to finalise this one
            return
        member = next(m for m in roster.participants if m.peer == self._topic.me)
        if not finalises and member.tokens != contribution.tokens:
            self._announce()
            return
        self.cancel()
        self._topic.began()
        decision.promised, decision.roster = roster.ballot, roster
        decision.ballots += 1
        decision.joined_s = decision.progress_s
        if not finalises:
            decision.note_sent(contribution)
            # made at once, as pieces may come before the task's first step
            decision.transfer = make_transfer(
                self._topic.context,
                roster,
                contribution,
                self._topic.contributions,
                self._topic.progressed,
            )
        decision.task = asyncio.get_running_loop().create_task(self._run(roster, contribution))
        decision.task.add_done_callback(self._on_run_done)
        self._topic.changed.notify()

    def decline(self, roster: Roster, reason: str) -> None:
        """Tell all in a ballot that this peer takes no part in it; they would wait for it."""
        if self._topic.me not in roster.peers:
            return
        body: dict[str, Json] = {
            "ballot": roster.ballot.to_json(),
            "reason": reason,
            "avoid": [],
            "rejected": [],
        }
        self._topic.send(roster.peers, "abort", body)

    async def _run(self, roster: Roster, contribution: Contribution) -> None:
        """Run a ballot up to its vote; what goes wrong ends the ballot, not the peer."""
        transfer = self._topic.decision.transfer
        try:
            if transfer is None:
                accepted = await self._finalise(roster)
            else:
                self._check_claims(roster)
                accepted = await reduce_update(self._topic.context, roster, contribution, transfer)
        except NonFiniteError as error:
            self._topic.decision.unsend(contribution)
            self._topic.decision.refusal = f"this island's pseudo-gradient is not finite: {error}"
            self.fail(str(error))
        except PeerFailedError as error:
            self._topic.decision.avoid |= set(error.peers) - {self._topic.me}
            liars = set(error.peers) if isinstance(error, BadContributionError) else set()
            for peer in liars:
                self._topic.reject(peer, str(error))
            self.fail(str(error), liars=liars)
        except (PeerUnreachableError, ProtocolError) as error:
            self.fail(str(error))
        else:
            if not await self._keep_promise(accepted):
                return
            decision = self._topic.decision
            decision.accepted = decision.voted[accepted.entry.hash] = accepted
            while len(decision.voted) > MAX_VOTED_UPDATES:
                del decision.voted[next(iter(decision.voted))]
            self._topic.progressed()
            decision.accepted_s = decision.progress_s
            vote: dict[str, Json] = {
                "ballot": roster.ballot.to_json(),
                "entry": accepted.entry.hash,
                "state": accepted.after.digest,
            }
            self._topic.send(roster.peers, "vote", vote)
            own = (accepted.entry.hash, accepted.after.digest)
            decision.votes.setdefault(roster.ballot, {})[self._topic.me] = own
            self.count_votes()

    async def _keep_promise(self, accepted: Accepted) -> bool:
        """Write a vote down before it is sent; one that can't be is not sent, and the ballot ends."""
        context = self._topic.context
        if context.promises is None:
            return True
        promise = Promise(accepted.ballot, accepted.entry, accepted.update)
        try:
            await asyncio.get_running_loop().run_in_executor(context.pool, context.promises.save, promise)
        except OSError as error:
            self.fail(f"the vote could not be written down: {error.strerror or error}")
            return False
        return True

    def recall(self, promise: Promise) -> None:
        """Be bound again by a vote that an earlier life has cast on this outer step."""
        decision, state = self._topic.decision, self._topic.context.state
        decision.promised = decision.seen = promise.ballot
        after = state.apply(promise.entry, promise.update)
        accepted = Accepted(promise.ballot, promise.entry, promise.update, after, None, None, None, None, ())
        decision.accepted = decision.voted[promise.entry.hash] = accepted

    def _check_claims(self, roster: Roster) -> None:
        """Take no part in a ballot with a peer that is out, or claims what can't be.

        Raises:
            BadContributionError: it names those.
        """
        banned = self._topic.context.peers.banned
        out = [peer for peer in roster.peers if peer in banned]
        if out:
            why = banned.reason(out[0], self._topic.now_s())
            raise BadContributionError(f"{', '.join(out)} is out of the run: {why}", out)
        refused = self._topic.contributions.judge(
            roster.participants, roster.outer_step, self._topic.chain.total_tokens
        )
        if self._topic.me in refused:  # ready again at once, it would be refused at once
            reason = f"this island's contribution can't be accepted: {refused[self._topic.me]}"
            self._topic.decision.refusal = reason
        if refused:
            raise BadContributionError(
                "; ".join(f"{peer}: {why}" for peer, why in refused.items()), list(refused)
            )

    def _on_run_done(self, task: asyncio.Task[None]) -> None:
        """A ballot that broke on a mistake of ours, or for lack of memory, ends this peer's round, too.

        Ready again at once, it could break the next ballot in the same way, and so on without an end.
        """
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("fragment %d: the round broke", self._topic.fragment, exc_info=error)
            if self._topic.decision.task is task:
                self._topic.decision.refusal = f"this island's part in the round broke: {error!r}"
                self.fail(self._topic.decision.refusal)

    async def _finalise(self, roster: Roster) -> Accepted:
        """Take over an update that was accepted in an earlier ballot, from this peer or another."""
        entry = roster.entry
        assert entry is not None
        voted = self._topic.decision.voted.get(entry.hash)
        if voted is not None:
            return replace(voted, ballot=roster.ballot)
        donors = [peer for peer in roster.peers if peer != self._topic.me]
        return await fetch_own(self._topic, entry, donors, roster.ballot)

    def check_stall(self) -> None:
        """End a ballot in which nothing has moved for longer than it ever takes, at most a deadline.

        Who lacks nothing but means waits longer: a reducer that lacks parts itself says first from whom.
        """
        decision = self._topic.decision
        if decision.task is None or decision.roster is None:
            return
        self._topic.notice_bytes(decision.roster.peers)
        limit_s, transfer = self._topic.stall_s(), decision.transfer
        patient_s = min(REDUCER_PATIENCE * limit_s, self._topic.context.policy.deadline_s)
        owing = transfer.missing_parts_from() if transfer else []
        if transfer and not owing and patient_s > limit_s and (owing := transfer.missing_means_from()):
            limit_s = patient_s
        if self._topic.now_s() - decision.progress_s < limit_s:
            return
        decision.avoid |= set(owing)
        self.fail(f"nothing came for {limit_s:g} s" + (f" from {', '.join(owing)}" if owing else ""))

    def _overdue(self) -> set[PeerId]:
        """Who owes this peer data, in a ballot that has stood still for half as long as one may.

        So a ballot that was ended by whoever holds it up is not formed with it again.
        """
        decision = self._topic.decision
        transfer, still_s = decision.transfer, self._topic.now_s() - decision.progress_s
        if transfer is None or still_s < self._topic.stall_s() / 2:
            return set()
        return set(transfer.missing_parts_from() or transfer.missing_means_from())

    def on_vote(self, peer: PeerId, fields: Fields) -> None:
        """A participant holds the whole update and names it."""
        decision = self._topic.decision
        if fields.integer("outer_step", 1) != decision.outer_step:
            return
        ballot = parse_ballot(fields)
        votes = decision.votes.setdefault(ballot, {})
        votes.setdefault(peer, (fields.digest("entry"), fields.digest("state")))
        while len(decision.votes) > MAX_VOTED_BALLOTS:
            del decision.votes[min(decision.votes)]
        if decision.roster is not None and peer in decision.roster.peers:
            self._topic.progressed()
        self.count_votes()

    def on_abort(self, peer: PeerId, fields: Fields) -> None:
        """A participant ended a ballot; whom it names counts also if another has ended it before."""
        decision = self._topic.decision
        roster, ballot = decision.roster or decision.ended, parse_ballot(fields)
        if fields.integer("outer_step", 1) != decision.outer_step:
            return
        if decision.roster is None and ballot > decision.promised:
            # Its roster has not come here. Those who have joined it take this peer for a part of it until it
            # says that it is ready, which would be a lie if it still joined.
            decision.promised = ballot
            self._announce()
        elif roster is not None and peer in roster.peers and ballot == roster.ballot:
            named = {PeerId(p) for p in fields.texts("avoid", len(roster.peers))} & set(roster.peers)
            if peer not in decision.avoid:  # who was named itself is not believed: it may be the liar
                decision.avoid |= named or self._overdue()
                liars = {PeerId(p) for p in fields.texts("rejected", len(roster.peers))} & named
                for liar in liars:
                    self._topic.reject(liar, f"{peer} says so: {fields.text('reason', 500)}", peer)
            if decision.roster is not None:
                self.fail(f"{peer}: {fields.text('reason', 500)}", tell=False)

    # -- deciding --------------------------------------------------------------------------------

    def count_votes(self) -> None:
        """Commit with the equal votes of all; end the ballot where two differ."""
        decision = self._topic.decision
        roster, accepted = decision.roster, decision.accepted
        if roster is None or accepted is None or accepted.ballot != roster.ballot:
            return
        votes = decision.votes.get(roster.ballot, {})
        own = (accepted.entry.hash, accepted.after.digest)
        differing = [peer for peer in roster.peers if peer in votes and votes[peer] != own]
        agreeing = [peer for peer in roster.peers if votes.get(peer) == own]
        if differing and 2 * len(agreeing) > len(roster.peers):
            # The odd one may have sent its true vote to somebody else, who has committed then. So what
            # was accepted stays so: the next ballot finishes it, without the odd one.
            for peer in differing:
                self._topic.reject(
                    peer, f"its digest after outer step {roster.outer_step} is {votes[peer][1]}"
                )
            self.fail(
                f"digests differ: {', '.join(differing)} has another than {len(agreeing)} others",
                liars=set(differing),
            )
        elif differing and len(differing) + len(agreeing) < len(roster.peers):
            return  # who is wrong shows when more votes are there
        elif differing:
            # Honest votes that differ can't commit anywhere, so this promise is void; a liar may have sent
            # another vote to the others, so what was voted for is kept until one of them has committed.
            decision.accepted = None
            decision.refusal = (
                f"digests differ after outer step {roster.outer_step}: here {own[1][:12]}, "
                + ", ".join(f"{peer} {votes[peer][1][:12]}" for peer in differing)
            )
            self.fail(decision.refusal)
        elif all(peer in votes for peer in roster.peers):
            self._commit(accepted)

    def fail(self, reason: str, *, tell: bool = True, liars: AbstractSet[PeerId] = frozenset()) -> None:
        """End the ballot under way; the next one is formed by whoever leads."""
        decision = self._topic.decision
        roster = decision.roster
        if roster is None:
            return
        logger.info(
            "fragment %d, outer step %d: ballot ended: %s", self._topic.fragment, roster.outer_step, reason
        )
        decision.failures.append(reason)
        decision.ended = roster
        if tell:
            avoid: list[Json] = [str(peer) for peer in sorted(decision.avoid & set(roster.peers))]
            body: dict[str, Json] = {
                "ballot": roster.ballot.to_json(),
                "reason": reason[:500],
                "avoid": avoid,
                "rejected": [str(peer) for peer in sorted(liars)],
            }
            self._topic.send(roster.peers, "abort", body)
        self.cancel()
        decision.first_ready_s = self._topic.now_s()
        if not decision.refusal:
            self._announce()
        self._topic.changed.notify()

    def cancel(self) -> None:
        """Drop the ballot under way without a word."""
        decision = self._topic.decision
        task, transfer = decision.task, decision.transfer
        decision.task = decision.transfer = decision.roster = None
        if transfer is not None:
            asyncio.get_running_loop().create_task(transfer.close())
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def end(self) -> None:
        """Drop the ballot under way and wait until it has stopped."""
        task = self._topic.decision.task
        self.cancel()
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)
