"""The round as a state machine: ready, roster, transfer, votes, commit or the next ballot.

The rules that make it atomic (docs/design/0001-skeleton.md):

- joining a ballot is a promise never to vote in a lower one;
- who has accepted an update joins no later ballot but one that finalises it (or a newer one);
- an update commits with the equal votes of all participants of a ballot, or when a peer that has
  committed it says so and it has been accepted here, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.base import Message
from lowcomm.exchanges.fields import Fields
from lowcomm.ledger.entry import Entry
from lowcomm.ledger.ranges import check_cut
from lowcomm.peers.notice import Notice
from lowcomm.peers.peer import Peer
from lowcomm.rounds.ballots import Ballots
from lowcomm.rounds.decision import Accepted, Context, Contribution, Decision, Ready, parse_ready
from lowcomm.rounds.electorate import Electorate
from lowcomm.rounds.leading import next_roster
from lowcomm.rounds.promises import Promise
from lowcomm.rounds.roster import MAX_LEAP, Ballot, Roster, parse_ballot, parse_signed_roster
from lowcomm.rounds.topic import Topic
from lowcomm.rounds.updates import fetch_own
from lowcomm.types import Digest, PeerId

logger = logging.getLogger(__name__)


class FragmentRound:
    """One fragment's rounds on one peer; call only from the exchange's loop.

    Args:
        fragment: its index.
        on_commit: called with each entry that was committed here.
    """

    def __init__(self, context: Context, fragment: int, on_commit: Callable[[Entry, Accepted], None]) -> None:
        self._topic = Topic(context, fragment)
        self._on_commit = on_commit
        self._electorate = Electorate(context, fragment)
        self._early: dict[int, dict[PeerId, Ready]] = {}
        self._recalled: Promise | None = None
        self._held_since_s = 0.0
        self.ballots = Ballots(self._topic, self.announce, self._commit)

    @property
    def decision(self) -> Decision:
        """On the next outer step."""
        return self._topic.decision

    @property
    def changed(self) -> Notice:
        """Notified whenever something happened that whoever waits for the round could care about."""
        return self._topic.changed

    # -- called by the node ----------------------------------------------------------------------

    def is_called(self) -> bool:
        """Whether others have gone past the next outer step, or are ready for it and enough are live."""
        if self.ahead():
            return True
        ready = any(said.previous == self._topic.chain.head for said in list(self.decision.readies.values()))
        return ready and self._electorate.may_commit({self._topic.me, *self._electorate.look()[0]})

    @property
    def waiting_s(self) -> float:
        """For how long other peers have been ready for the next outer step."""
        return self._topic.now_s() - self.decision.first_ready_s if self.decision.readies else 0.0

    def look(self) -> None:
        """The swarm changed: perhaps a round can be formed now, or has become hopeless."""
        self._follow_commit()
        if self._recalled is not None and self.decision.contribution is not None and not self._held():
            self.announce()  # what held it back is void, or has been caught up with
        self._tell_ready()
        self._lead()
        self.changed.notify()

    def contribute(self, contribution: Contribution) -> None:
        """This peer is due: announce it, or what it has sent before and others may still commit."""
        self.decision.contribution = self.decision.to_send(contribution)
        self.decision.unformed = self.decision.refusal = ""
        self._held_since_s = self._topic.now_s()
        if not self._held():
            self.announce()

    def announce(self) -> None:
        """Broadcast that this peer is due, with what it has promised and accepted."""
        decision, contribution = self.decision, self.decision.contribution
        if contribution is None:
            return
        accepted = decision.accepted
        decision.ready = Ready(
            previous=self._topic.chain.head,
            tokens=contribution.tokens,
            norm=contribution.norm,
            inner_step=contribution.inner_step,
            promised=decision.promised,
            accepted=(accepted.ballot, accepted.entry) if accepted else None,
            rates=self._topic.context.rates.known,
            speed=contribution.speed,
        )
        decision.told.clear()
        self._tell_ready()
        self._take_ready(self._topic.me, decision.ready)

    def _tell_ready(self) -> None:
        """Send this peer's readiness to those who train and have not heard of it, newcomers too."""
        decision = self.decision
        if decision.ready is None or decision.task is not None:
            return
        untold = [
            peer.id
            for peer in self._topic.context.peers.live()
            if peer.state.phase == "training" and peer.id not in decision.told
        ]
        decision.told.update(untold)
        self._topic.send(tuple(untold), "ready", decision.ready.to_json())

    def next_deadline_s(self) -> float:
        """When to look again although nothing has come: seconds from now."""
        decision, deadline_s = self.decision, self._topic.context.policy.deadline_s
        since = decision.first_ready_s
        if decision.task is not None:
            since, deadline_s = decision.progress_s, self._topic.stall_s()
        waited = self._topic.now_s() - since
        return max(0.05, deadline_s - waited if waited < deadline_s else deadline_s / 4)

    async def abandon(self, *, answers: bool) -> None:
        """Give up on this round, and say so. Training goes on; promises and an accepted update stay.

        Args:
            answers: this peer will be ready as soon as others are, so it is worth waiting for.
        """
        decision = self.decision
        decision.contribution = None  # first, so that no ballot is joined while the one under way ends
        await self.ballots.end()
        if decision.ready is not None:  # else nothing was announced, maybe for lack of a name: never started
            decision.readies.pop(self._topic.me, None)
        self._topic.broadcast("unready", {"answers": int(answers)})
        decision.ready = None

    def restart(self) -> None:
        """The chain moved by other means (catch-up, snapshot): decide what follows it."""
        self.ballots.cancel()
        previous = self.decision
        decision = self._topic.decision = Decision(self._topic.chain.outer_step + 1)
        decision.contribution = previous.contribution
        for outer_step in [step for step in self._early if step < decision.outer_step]:
            del self._early[outer_step]
        decision.readies = self._early.pop(decision.outer_step, {})
        if previous.outer_step == decision.outer_step:
            decision.readies = previous.readies  # another head at the same height; who shares it counts
        decision.first_ready_s = self._topic.now_s()
        self._be_bound()
        self.changed.notify()

    def recall(self) -> None:
        """Read what an earlier life of this peer has voted for; it binds as soon as that step is reached."""
        promises = self._topic.context.promises
        self._recalled = promises.load(self._topic.fragment) if promises else None
        self._be_bound()

    def _be_bound(self) -> None:
        promise, chain = self._recalled, self._topic.chain
        if promise is None or promise.entry.outer_step > chain.outer_step + 1:
            return
        self._recalled = None
        if promise.entry.outer_step == chain.outer_step + 1 and promise.entry.previous == chain.head:
            logger.info(
                "fragment %d: this island has voted in outer step %d before, and stands by it",
                self._topic.fragment,
                promise.entry.outer_step,
            )
            try:
                self.ballots.recall(promise)
            except ProtocolError as error:
                logger.error("fragment %d: an earlier vote is void: %s", self._topic.fragment, error)

    def _held(self) -> bool:
        """Whether an earlier vote keeps this peer out; after a deadline the round is given up."""
        reason = self._bound_beyond()
        if reason and self._topic.now_s() - self._held_since_s >= self._topic.context.policy.deadline_s:
            self.decision.unformed = reason
        return bool(reason)

    def _bound_beyond(self) -> str:
        """Why this peer must not vote here: it has voted in a later outer step, so it knew more once.

        Where all who took part in that step are here and none has that history, all have gone back
        to a checkpoint, and the vote is void.
        """
        promise = self._recalled
        if promise is None:
            return ""
        height, live = self._topic.chain.outer_step, self._topic.context.peers.live()
        steps = {peer.id: peer.state.outer_steps[self._topic.fragment :] for peer in live}
        others = {peer for peer, _ in promise.entry.participants} - {self._topic.me}
        if all(peer in steps and steps[peer] and steps[peer][0] <= height for peer in others):
            logger.warning(
                "fragment %d: nobody who took part in outer step %d has that history any more; the run "
                "goes on from outer step %d",
                self._topic.fragment,
                promise.entry.outer_step,
                height,
            )
            self._recalled = None
            return ""
        return (
            f"this island has voted in outer step {promise.entry.outer_step} before it was restarted, and "
            f"none of the live islands knows what came after outer step {height}"
        )

    async def close(self) -> None:
        """End the ballot under way."""
        await self.ballots.end()

    # -- messages --------------------------------------------------------------------------------

    def on_ready(self, peer: PeerId, fields: Fields) -> None:
        """A peer is due."""
        ready, outer_step = parse_ready(fields), fields.integer("outer_step", 1)
        self._check_leap(peer, outer_step, ready.promised)
        if outer_step == self.decision.outer_step:
            self._take_ready(peer, ready)
        elif outer_step == self.decision.outer_step + 1:
            self._early.setdefault(outer_step, {})[peer] = ready  # it has committed, this peer not yet

    def on_unready(self, peer: PeerId, fields: Fields) -> None:
        """A peer has given up on a round."""
        outer_step = fields.integer("outer_step", 1)
        if fields.integer("answers", 0, 1):
            self._electorate.will_answer(peer)
        if outer_step == self.decision.outer_step:
            self.decision.readies.pop(peer, None)
        else:
            self._early.get(outer_step, {}).pop(peer, None)

    def on_roster(self, peer: PeerId, fields: Fields) -> None:
        """A leader's proposal: join it if no promise forbids.

        Raises:
            ProtocolError: it is not the sender's to propose, or not signed by it.
        """
        roster = parse_signed_roster(fields, peer, self._topic.context.exchange)
        if roster.fragment != self._topic.fragment:
            raise ProtocolError(f"roster of {peer}: it names fragment {roster.fragment}")
        elements = self._topic.context.state.fragments[roster.fragment].elements
        check_cut(roster.stops, roster.chunk_elements, elements)
        self._check_leap(peer, roster.outer_step, roster.ballot)
        if self._electorate.may_commit(roster.peers):
            self.ballots.join(roster)
        elif roster.outer_step == self.decision.outer_step:  # a leader may count otherwise, or lie
            self.ballots.decline(roster, f"{len(roster.peers)} are too few to commit, as it counts")
            self.decision.avoid.add(peer)
            self._lead()

    def on_abort(self, peer: PeerId, fields: Fields) -> None:
        """A participant ended a ballot."""
        self._check_leap(peer, fields.integer("outer_step", 1), parse_ballot(fields))
        self.ballots.on_abort(peer, fields)

    def _check_leap(self, peer: PeerId, outer_step: int, ballot: Ballot) -> None:
        """Refuse a ballot that no honest peer can have come to: nobody could go above it."""
        decision = self.decision
        seen = max(decision.seen, decision.promised).attempt if outer_step == decision.outer_step else 0
        if outer_step >= decision.outer_step and ballot.attempt > seen + MAX_LEAP:
            raise ProtocolError(f"{peer}: ballot {ballot.attempt} is far above all that were seen")

    def on_unformed(self, fields: Fields) -> None:
        """The leader found too few participants by the deadline."""
        if fields.integer("outer_step", 1) == self.decision.outer_step and self.decision.task is None:
            self.decision.unformed = fields.text("reason", 500)
            self.changed.notify()

    def on_rejected(self, peer: PeerId, fields: Fields) -> None:
        """A peer doesn't accept this island's contribution; it says why."""
        reason = f"{peer} rejected this island's contribution: {fields.text('reason', 500)}"
        logger.warning("fragment %d: %s", self._topic.fragment, reason)
        if fields.integer("outer_step", 1) == self.decision.outer_step:
            self.decision.failures.append(reason)

    def take_rejected(self) -> tuple[str, ...]:
        """Contributions of others that were rejected since the last call, as `peer: reason`."""
        return self._topic.contributions.take_rejected()

    def on_peer_down(self, peer: PeerId, reason: str) -> None:
        """A peer is gone: it is not ready any more, and the ballot with it is over."""
        self._topic.context.rates.forget(peer)
        self.decision.readies.pop(peer, None)
        self.decision.told.discard(peer)
        self.decision.busy.discard(peer)
        for early in self._early.values():
            early.pop(peer, None)
        roster = self.decision.roster
        if roster is not None and peer in roster.peers:
            self.ballots.fail(f"{peer} is gone ({reason})")

    def on_silent(self, peer: PeerId, reason: str) -> None:
        """A peer says nothing any more: the ballot with it is over. What it has announced stays."""
        roster = self.decision.roster
        if roster is not None and peer in roster.peers:
            self.ballots.fail(f"{peer} is {reason}")

    async def on_piece(self, peer: PeerId, fields: Fields, message: Message) -> None:
        """A `part` or `mean` chunk. One that is ahead of its roster waits for it (back-pressure)."""
        outer_step, ballot = fields.integer("outer_step", 1), parse_ballot(fields)
        give_up_s = self._topic.now_s() + self._topic.context.policy.deadline_s
        while True:
            decision = self.decision
            ours = (decision.outer_step, decision.promised)
            if (outer_step, ballot) == ours or (outer_step, ballot) < ours:
                break
            if self._topic.now_s() >= give_up_s or outer_step > decision.outer_step + 1:
                return
            await self.changed.wait(give_up_s - self._topic.now_s())
        transfer = self.decision.transfer
        if transfer is not None and (outer_step, ballot) == (
            self.decision.outer_step,
            self.decision.promised,
        ):
            transfer.on_piece(
                peer, message.kind, fields.integer("chunk"), fields.text("sum"), message.payload
            )

    def on_again(self, peer: PeerId, fields: Fields) -> None:
        """A chunk came there damaged."""
        transfer, decision = self.decision.transfer, self.decision
        asked = (fields.integer("outer_step", 1), parse_ballot(fields))
        if transfer is not None and asked == (decision.outer_step, decision.promised):
            transfer.send_again(peer, fields.text("piece"), fields.integer("chunk"))

    # -- leading ---------------------------------------------------------------------------------

    def _take_ready(self, peer: PeerId, ready: Ready) -> None:
        if not self.decision.readies:
            self.decision.first_ready_s = self._topic.now_s()
        self.decision.readies[peer] = ready
        self.decision.busy.discard(peer)
        self._electorate.ready(peer)
        self._lead()
        self.changed.notify()

    def _lead(self) -> None:
        """Propose a roster if this peer leads and it is time."""
        topic = self._topic
        found = next_roster(topic.context, topic.fragment, self.decision, self._electorate, topic.now_s())
        if isinstance(found, Roster) and found.entry is None:
            refused = topic.contributions.judge(
                found.participants, found.outer_step, topic.chain.total_tokens
            )
            refused.pop(topic.me, None)
            for peer, reason in refused.items():
                topic.reject(peer, reason)
            if refused:
                return self._lead()
        if isinstance(found, Roster):
            exchange = topic.context.exchange
            signature = exchange.sign(found.signed_bytes(exchange.run_id)).hex()
            self._topic.broadcast("roster", {"roster": found.to_json(), "signature": signature})
            self.ballots.join(found)
        elif found is not None:
            self._topic.broadcast("unformed", {"reason": found})
            self.decision.unformed = found
            self.decision.readies.clear()
            self.changed.notify()

    def ahead(self) -> list[Peer]:
        """Live peers that have committed more of this fragment, the furthest first."""
        return self._electorate.ahead()

    def judge_donor(self, peer: PeerId, *, helped: bool) -> None:
        """Note whether a peer that is ahead has handed over anything."""
        if helped:
            self._electorate.trust(peer)
        else:
            self._electorate.doubt(peer)

    async def fetch(self, entry: Entry, donors: list[PeerId], ballot: Ballot) -> Accepted:
        """See `fetch_own`."""
        return await fetch_own(self._topic, entry, donors, ballot)

    # -- deciding --------------------------------------------------------------------------------

    def commit_voted(self, head: Digest) -> bool:
        """Commit the update that leads to `head`, which another peer has committed.

        Returns:
            Whether this peer had voted for it; if not, nothing happens.
        """
        voted = self.decision.voted.get(head)
        if voted is not None:
            self._commit(voted)
        return voted is not None

    def _follow_commit(self) -> None:
        """Commit what this peer has voted for as soon as another says that it has committed just that."""
        for peer in self._topic.context.peers.linked.values():
            heads = peer.state.heads
            if self.decision.voted and self._topic.fragment < len(heads):
                self.commit_voted(heads[self._topic.fragment])

    def _commit(self, accepted: Accepted) -> None:
        state = self._topic.context.state
        state.commit(accepted.entry, accepted.update, accepted.after)
        if accepted.contribution is not None:
            state.residuals[self._topic.fragment] = accepted.residual
        if accepted.contribution is not None:
            self.decision.contribution = None  # what is left of it is announced anew
        self._electorate.committed_here = True
        self._topic.contributions.committed(accepted.entry, accepted.participants)
        self.restart()
        self._on_commit(accepted.entry, accepted)
