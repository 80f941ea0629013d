"""One peer's part in the swarm: it owns the outer state, answers messages, and runs the rounds.

Everything here runs in the exchange's event loop. `OuterLoop` calls it, its `joining` and its `submissions`
from the training thread through futures.
"""

from __future__ import annotations

import asyncio
import logging
import operator
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

from lowcomm.errors import ExchangeError, JoinRefusedError, PeerUnreachableError, ProtocolError
from lowcomm.exchanges.base import Directory, Exchange, Links, Message, Signer
from lowcomm.exchanges.fields import Fields
from lowcomm.ledger.blobs import Blob, Blobs
from lowcomm.ledger.certificate import Certificate, goodbye_bytes
from lowcomm.ledger.chain import Certified
from lowcomm.ledger.mandate import Authority
from lowcomm.ledger.recorder import EntrySink, Recorder
from lowcomm.ledger.redo import STATES, RedoLog
from lowcomm.ledger.state import OuterState, Position
from lowcomm.ledger.upload_rate import UploadRate
from lowcomm.outer.submissions import Submissions
from lowcomm.outer.thread import give_way
from lowcomm.outer.units import Units
from lowcomm.peers.acquaintances import REDIAL_LONGEST_S
from lowcomm.peers.leases import Leases
from lowcomm.peers.notice import Notice
from lowcomm.peers.peer import Chains, Peer, State
from lowcomm.peers.remembered import RememberedPeers
from lowcomm.peers.requests import Requests
from lowcomm.peers.shard_claims import ShardClaims
from lowcomm.peers.table import Peers
from lowcomm.recovery.catching_up import CatchingUp
from lowcomm.recovery.donor import Donor
from lowcomm.recovery.joining import Joining
from lowcomm.recovery.mandates import Mandates
from lowcomm.rounds.context import Context
from lowcomm.rounds.contribution import Accepted, Contribution
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.rounds.promises import FilePromises, Promises
from lowcomm.rounds.round import FragmentRound
from lowcomm.rounds.values import Call
from lowcomm.types import Digest, Json, Layout, PeerId, short

T = TypeVar("T")
A = TypeVarTuple("A")

logger = logging.getLogger(__name__)

POOL_THREADS = 2
FAREWELL_S = 2.0
SEE_OFF_LEASES = 2
ISLANDS_ONLY = frozenset(
    (
        "ready", "unready", "opened", "roster", "unformed", "joined", "vote", "decided", "rejected", "abort",
        "again", "mandate", "units",
    )
)  # fmt: skip
"""What a seed or an observer, whose settings nobody compares, may not say."""
GRACE_LEASES = 3.0
"""Who has not been heard for so many leases counts as absent: one to notice, the rest to be linked again."""
MAX_BREACHES = 8
"""Who breaks the protocol so often, without a round with it that commits, is out."""
MAX_REFUSALS = 16
"""Kept to be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """How a peer takes part in a run.

    Attributes:
        shared, layout: compared with every peer that greets.
        chunk_bytes: fp32 bytes of one separately encoded piece.
        snapshot_mbit_s: upload rate for snapshots handed to others; 0 = unlimited.
        unit_samples: in a unit of what islands lease; 0 = they don't.
        said: what it says of itself at first.
    """

    policy: RoundPolicy
    shared: Mapping[str, Json]
    layout: Layout
    heartbeat_s: float
    lease_s: float
    chunk_bytes: int
    snapshot_mbit_s: float = 0.0
    unit_samples: int = 0
    said: State = field(default_factory=State)


class Node:
    """A peer with an outer state; an island's lead rank runs one.

    Args:
        state: the outer state, which this node owns from now on.
        ledger_file: where committed entries are noted, or None.
        folder: the run folder, for what outlives this process or has no room in memory; None = none.
        promises: where votes are kept over a crash; None = in `folder`, where the policy needs them.
        pool: encodes, decodes and hashes; None = two threads.

    Attributes:
        grace_s: by then whoever misses this peer, and can reach it, has dialled it.
    """

    def __init__(
        self,
        exchange: Exchange,
        state: OuterState,
        settings: NodeSettings,
        *,
        ledger_file: EntrySink | None,
        folder: Path | None = None,
        promises: Promises | None = None,
        pool: Executor | None = None,
    ) -> None:
        self.links: Links = exchange
        self.directory: Directory = exchange
        self.signer: Signer = exchange
        policy, lease_s = settings.policy, settings.lease_s
        self.state, self.deadline_s = state, policy.deadline_s
        self._see_off_s = SEE_OFF_LEASES * lease_s
        self.pool = pool or ThreadPoolExecutor(POOL_THREADS, "lowcomm-codec", initializer=give_way)
        self.recorder = Recorder(ledger_file, self.pool)
        self.remembered = RememberedPeers(folder, exchange.run_id, self.pool)
        self.folder = folder
        self.grace_s = REDIAL_LONGEST_S + lease_s
        state.keep_updates(folder, self.pool)
        self.changed = Notice()
        self.refusals: list[str] = []
        self.fatal: ExchangeError | None = None
        self.peers = Peers(
            exchange,
            shared=settings.shared,
            layout=settings.layout,
            state=settings.said,
            heartbeat_s=settings.heartbeat_s,
            lease_s=lease_s,
            on_change=self._look,
            on_silent=self._on_silent,
            on_refused=self._on_refused,
            ban_s=policy.limits.ban_s,
        )
        self.blobs = Blobs(exchange, self._find_blob, self.pool, UploadRate(settings.snapshot_mbit_s))
        self.requests = Requests(exchange, lambda: self.deadline_s)
        self._donor = Donor(state, self.peers, folder, self.pool)
        self.catching_up = CatchingUp(self)
        self.joining = Joining(self, self.catching_up)
        self.shard_claims = ShardClaims(exchange, self.peers, self.requests, self.changed)
        leases = Leases(exchange, self.peers, self.changed, settings.unit_samples)
        self.units = Units(exchange, state.chains[0], leases)
        if promises is None and folder is not None:
            promises = FilePromises(folder)
        redo = None
        if folder is not None and policy.partition == "majority":
            redo = RedoLog(folder, tuple(STATES * held.size_bytes for held in state.states))
        block = state.codec.block_elements
        chunk_elements = max(1, settings.chunk_bytes // 4 // block) * block
        self.context = Context(
            exchange, self.peers, self.blobs, state, state.codec, policy, self.pool, chunk_elements,
            GRACE_LEASES * lease_s, Authority(exchange.run_id, PeerId(policy.operator), exchange.verify),
            promises, redo,
        )  # fmt: skip
        self.mandates = Mandates(self)
        self.rounds = [
            FragmentRound(self.context, f.index, self._committed, self.ask_entries) for f in state.fragments
        ]
        self._breaches: dict[PeerId, int] = {}
        self._dropped: list[str] = []
        self.submissions = Submissions(self, self.catching_up, self.units)
        self._control = self._handlers()

    def _handlers(self) -> dict[str, Callable[[PeerId, Fields], None]]:
        """Who takes a control message, by its kind."""
        peers, requests, donor = self.peers, self.requests, self._donor
        return {
            "hello": peers.on_hello,
            "peers": peers.on_peers,
            "state": peers.on_state,
            "ping": peers.on_ping,
            "pong": peers.on_pong,
            "doubt": peers.on_doubt,
            "refuse": peers.on_refuse,
            "terms?": peers.on_terms_request,
            "terms": peers.on_terms,
            "dropped": self._on_dropped,
            "blob?": self.blobs.on_request,
            "entries?": donor.on_entries_request,
            "branch?": donor.on_branch_request,
            "snapshot?": donor.on_snapshot_request,
            "claim?": self.shard_claims.on_claim,
            "units": self.units.leases.on_units,
            **dict.fromkeys(("branch", "entries", "snapshot", "claim"), requests.on_reply),
            "ready": lambda peer, fields: self._round(fields).on_ready(peer, fields),
            "roster": lambda peer, fields: self._round(fields).on_roster(peer, fields),
            "unready": lambda peer, fields: self._round(fields).on_unready(peer, fields),
            "opened": lambda peer, fields: self._round(fields).on_opened(peer, fields),
            "decided": lambda peer, fields: self._round(fields).on_decided(peer, fields),
            "unformed": lambda peer, fields: self._round(fields).on_unformed(peer, fields),
            "joined": lambda peer, fields: self._round(fields).on_joined(peer, fields),
            "vote": lambda peer, fields: self._round(fields).on_vote(peer, fields),
            "again": lambda peer, fields: self._round(fields).on_again(peer, fields),
            "rejected": lambda peer, fields: self._round(fields).on_rejected(peer, fields),
            "mandate": self.mandates.on_mandate,
            "abort": lambda peer, fields: self._round(fields).on_abort(peer, fields),
        }

    async def start(self, checkpoints: Sequence[int] = ()) -> None:
        """Open the exchange; greet whoever is there.

        Args:
            checkpoints: inner steps of those that this island could resume from.
        """
        self.peers.say(checkpoints=tuple(checkpoints))
        try:
            if met := self.remembered.before:
                await self.links.start(self, met)
            else:  # exchanges of users may take no more than a receiver
                await self.links.start(self)
        except PeerUnreachableError as error:
            raise PeerUnreachableError(f"{error}{self.remembered.way_out()}") from error
        self.peers.start()
        await self.mandates.start()
        for fragment_round in self.rounds:
            await fragment_round.recall()

    async def close(self) -> None:
        """Say goodbye, end everything, close the exchange. Rounds under way are cancelled."""
        self.note_others()
        await self.mandates.stop()
        await self.submissions.close()  # else each call could announce its contribution anew
        for fragment_round in self.rounds:
            # before the farewell, which promises that no vote follows
            await fragment_round.abandon(answers=False)
            await fragment_round.close()
        if self.peers.state.phase == "training":
            await self._see_off()
        if self.peers.linked:
            said = goodbye_bytes(self.state.run_id, self.signer.peer_id, self.peers.state.outer_steps)
            self.peers.say(phase="leaving", goodbye=self.signer.sign(said).hex())
            farewell = Message("state", self.peers.own_state().to_json())
            sends = [
                self.links.send(peer, farewell) for peer, known in self.peers.linked.items() if known.greeted
            ]
            try:
                async with asyncio.timeout(FAREWELL_S):
                    await asyncio.gather(*sends, return_exceptions=True)
            except TimeoutError:
                pass  # who takes nothing any more finds out by the silence
        await self.peers.stop()
        await self.blobs.close()
        await self.links.close()
        for written in (self.recorder.written(), self.remembered.written()):
            await asyncio.wrap_future(written)
        await self.catching_up.redoable()
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.state.updates.close()
        self._donor.close()

    async def _see_off(self) -> None:
        """Wait for others to have what was committed here: once this peer has left, they may find it nowhere.

        For as long as they have it not and are heard, and for `SEE_OFF_LEASES` at most.
        """
        own = self.peers.state.outer_steps

        def is_behind(peer: Peer) -> bool:
            theirs = peer.state.outer_steps
            return peer.state.phase == "training" and any(map(operator.lt, theirs, own))

        try:
            async with asyncio.timeout(self._see_off_s):
                while any(map(is_behind, self.peers.live())):
                    await self.changed.wait(1.0)
        except TimeoutError:
            pass  # they have stopped, or have another history

    async def restore(self, fragment: int, saved: Mapping[str, Any]) -> Position:
        """Load a fragment's outer state from a checkpoint, between `start` and `Joining.join`.

        Returns:
            Where the fragment stands then.

        Raises:
            CheckpointError: it belongs to another model or is damaged.
        """
        position = await self.in_pool(self.state.read, fragment, saved)
        self.state.restore(fragment, position)
        self.rounds[fragment].restart()
        return position

    async def take_shard(self, shard: int) -> None:
        """Go on with the part of the data of a checkpoint, unless one was set."""
        if self.peers.state.shard < 0:
            self.peers.say(shard=shard)

    def calls(self) -> tuple[Call, ...]:
        """What others want with each fragment, as of the last event or look; callable from any thread."""
        return tuple([fragment_round.call for fragment_round in self.rounds])

    async def in_pool(self, work: Callable[[*A], T], *args: *A) -> T:
        """Do in a worker thread what would keep the network waiting: what reads, writes or hashes much."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work, *args)

    def note_others(self) -> None:
        """Keep in the run folder which other islands are here."""
        self.remembered.note({peer.id: peer.addresses for peer in self.peers.live()}, self.peers.departed)

    def publish_position(self) -> None:
        """Put chain positions into this peer's state and tell everybody."""
        self._note_position()
        self.peers.announce()

    def _note_position(self) -> None:
        chains = self.state.chains
        self.peers.say(
            chains=Chains(
                tuple(chain.outer_step for chain in chains),
                tuple(chain.head for chain in chains),
                tuple(chain.total_tokens for chain in chains),
            )
        )

    def take_dropped(self) -> list[str]:
        """Peers that broke the protocol since the last report, as `peer: reason`."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def _on_dropped(self, peer: PeerId, fields: Fields) -> None:
        """This peer broke the protocol, says another one; it will be linked again in a moment."""
        logger.warning(
            "%s drops the link to this island: %s", self.peers.called(peer), fields.text("reason", 500)
        )

    async def ask_entries(self, peer: PeerId, fragment: int) -> list[Certified]:
        """The entries after this peer's head that another one has, their certificates not checked.

        Raises:
            PeerUnreachableError, ProtocolError: it doesn't answer, or not in form.
        """
        return await self.catching_up.ask(peer, fragment)

    def _committed(
        self, accepted: Accepted, certificate: Certificate | None, sent: Sequence[Contribution]
    ) -> None:
        entry, certified = accepted.entry, Certified(accepted.entry, certificate)
        self.units.committed(entry)
        self.submissions.committed(accepted, certificate, sent)
        for peer, _ in entry.participants:
            self._breaches.pop(peer, None)
        self.peers.banned.proven(peer for peer, _ in entry.participants)
        self.recorder.committed(certified, accepted.update)
        if (redo := self.context.redo) is not None:
            redo.note(certified, accepted.update)
            self.pool.submit(
                redo.flush
            )  # what it can't write is said by the next promise, which waits for it
        self._donor.committed(certified, accepted.update)
        self.note_others()
        self._note_position()
        if certificate is not None and self.signer.peer_id in certificate.voters:
            self.peers.announce_commit(entry, certificate.voters)
        else:
            self.peers.announce()
        self.changed.notify()

    def adopt(self, accepted: Accepted, certificate: Certificate) -> None:
        """Commit an entry that another peer has committed; its certificate is checked."""
        fragment_round = self.rounds[accepted.entry.fragment]
        if fragment_round.on_certificate(accepted.entry, certificate):
            return  # with this peer's own part in it, and its residual
        sent = fragment_round.contributions
        self.state.commit(accepted.entry, accepted.update, accepted.after, certificate)
        if accepted.contribution is not None or accepted.entry.tokens_of(self.signer.peer_id):
            # it went into this entry, sent by this process or by the one before a restart
            self.state.residuals[accepted.entry.fragment] = None
        fragment_round.restart()
        self._committed(accepted, certificate, sent)

    # -- the exchange's receiver -------------------------------------------------------------------

    def on_message(self, peer: PeerId, message: Message) -> None:
        """Dispatch a control message; a peer that breaks the protocol is dropped."""
        if not self.peers.is_heard(peer):
            return
        handler = self._control.get(message.kind)
        try:
            self.peers.heard(peer)
            if not self.peers.admit_message(peer, message.kind):
                return
            if handler is None:
                raise ProtocolError(f"unknown message {message.kind!r:.60}")
            if message.kind in ISLANDS_ONLY and self.peers.linked[peer].state.role != "island":
                raise ProtocolError(f"{message.kind}: only islands take part in rounds")
            handler(peer, Fields(message.kind, message.body))
        except (ProtocolError, ValueError) as error:
            self._drop(peer, error)

    async def on_bulk(self, peer: PeerId, message: Message) -> None:
        """Dispatch a bulk message."""
        if not await self.peers.admit_bulk(peer):
            return
        self.peers.heard(peer)
        try:
            fields = Fields(message.kind, message.body)
            if message.kind in ("part", "mean"):
                await self._round(fields).on_piece(peer, fields, message)
            elif message.kind == "blob":
                self.blobs.on_piece(peer, fields, bytes(message.payload))
            else:
                raise ProtocolError(f"unknown bulk message {message.kind!r:.60}")
        except (ProtocolError, ValueError) as error:
            self._drop(peer, error)

    def on_peer_up(self, peer: PeerId) -> None:
        """A link came up."""
        self.peers.on_peer_up(peer)

    def on_peer_down(self, peer: PeerId, reason: str) -> None:
        """A link broke."""
        self.blobs.on_peer_down(peer)
        self.requests.on_peer_down(peer)
        self.shard_claims.on_peer_down(peer)
        self.units.leases.on_peer_down(peer)
        self.peers.on_peer_down(peer)
        for fragment_round in self.rounds:
            fragment_round.on_peer_down(peer, reason)
        self._look()

    def on_fatal(self, error: ExchangeError) -> None:
        """This peer has to go, and what it would do without the others is no part of the run's history."""
        self.fatal = error
        for fragment_round in self.rounds:
            fragment_round.halt()
        self.changed.notify()

    def raise_fatal(self) -> None:
        """Raise what ended this peer's part in the run.

        Raises:
            ExchangeError: another live process uses its identity.
        """
        if self.fatal is not None:
            raise self.fatal

    def _on_silent(self, peer: PeerId, reason: str) -> None:
        """A peer says nothing, over a link that looks whole: nobody waits for it until it speaks again."""
        logger.info("%s is %s", peer, reason)
        self.blobs.on_peer_down(peer)
        self.requests.on_peer_down(peer)
        for fragment_round in self.rounds:
            fragment_round.on_silent(peer, reason)

    def _drop(self, peer: PeerId, error: Exception) -> None:
        """Tell a peer that it broke the protocol, and how; end the link, after too many times for good."""
        logger.warning("%s broke the protocol and is dropped: %s", self.peers.called(peer), error)
        entry = self.peers.linked.get(peer)
        if entry is not None and entry.greeted:  # a stranger is heard in nothing, and costs nothing, anyway
            self._breaches[peer] = self._breaches.get(peer, 0) + 1
        self._dropped = [*self._dropped[-MAX_REFUSALS:], f"{peer}: broke the protocol: {error}"[:500]]
        if self._breaches.get(peer, 0) >= MAX_BREACHES:
            self.peers.ban(peer, f"it broke the protocol {MAX_BREACHES} times, last: {error}")
        else:
            self.peers.post(peer, Message("dropped", {"reason": str(error)[:500]}))
        self.on_peer_down(peer, "it broke the protocol")  # what it has sent since then is not heard
        task = asyncio.get_running_loop().create_task(self.links.disconnect(peer))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _round(self, fields: Fields) -> FragmentRound:
        return self.rounds[fields.integer("fragment", 0, len(self.rounds) - 1)]

    def _look(self) -> None:
        for fragment_round in self.rounds:
            fragment_round.look()
        self.shard_claims.look()
        self.units.leases.look()
        self.changed.notify()

    def _on_refused(self, peer: PeerId, reasons: list[str]) -> None:
        text = f"peer {short(peer)} and this island don't fit together: " + "; ".join(reasons)
        # who is alone ends with this text
        level = (
            logging.INFO if self._is_refused() and self.peers.state.phase != "training" else logging.WARNING
        )
        logger.log(level, "%s", text)
        self.refusals = [*self.refusals[-MAX_REFUSALS:], text]
        task = asyncio.get_running_loop().create_task(self._part(peer))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.changed.notify()

    async def _part(self, peer: PeerId) -> None:
        await asyncio.sleep(0.5)  # let the refusal reach the other side before the link goes
        await self.links.disconnect(peer)

    def raise_if_refused(self) -> None:
        """Raise what a peer refused this one for, unless another one has let it in.

        Who is alone with a stranger's word can't know who of the two is wrong; the founder of a run is not.

        Raises:
            JoinRefusedError: it names the keys that differ.
        """
        self.raise_fatal()
        if self.refusals and self._is_refused():
            raise JoinRefusedError(self.refusals[0])

    def _is_refused(self) -> bool:
        """Whether a refusal ends this island: nobody has let it in."""
        return not self.peers.live() and not self.directory.founder

    def _find_blob(self, name: Digest) -> Blob | None:
        for chain, fragment_round in zip(self.state.chains, self.rounds, strict=True):
            if (accepted := fragment_round.find_update(name)) is not None:
                return accepted
            if (kept := chain.update(name)) is not None:
                return kept
        return self._donor.find(name)
