"""Joining, catching up, and serving those who do.

Whoever is behind asks a peer that is ahead for the entries after its own head, fetches their
updates as blobs and replays them: a few compressed updates, not the model. If the entries are no
longer kept, or its own head is not in that chain, it takes the state itself, a blob named by the
digest in the last entry.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from lowcomm.errors import PeerUnreachableError, ProtocolError
from lowcomm.exchanges.base import Message
from lowcomm.membership.fields import Fields
from lowcomm.membership.ledger import Entry, parse_entry
from lowcomm.membership.peers import Peer
from lowcomm.membership.roster import NO_BALLOT
from lowcomm.outer.state import FragmentState
from lowcomm.types import Digest, Json, PeerId

if TYPE_CHECKING:
    from lowcomm.outer.node import Node

logger = logging.getLogger(__name__)

MAX_ENTRIES = 256
PINNED_S = 60.0
"""A state that a peer is fetching is kept for so long after its last request."""
LINK_PATIENCE_S = 5.0
"""A joiner waits so long for links to all peers it has heard of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinReport:
    """How this island came into the run.

    Attributes:
        inner_step: where it starts on the swarm's count.
        how: `founded` the run, was `aligned` already, `replayed` entries, or took a `snapshot`.
        entries: how many entries were replayed.
        snapshot_bytes: bytes of state taken over.
        tokens_credited: tokens of this island in replayed entries: trained and counted before a
            restart that lost them, so the data loader has to skip them.
        shard: the part of the data this island has claimed.
        out_of_step: it came while the others were under way, so it answers its first round as soon as
            they are ready, with however many tokens it has.
    """

    inner_step: int
    outer_steps: tuple[int, ...]
    peers: tuple[PeerId, ...]
    how: Literal["founded", "aligned", "replayed", "snapshot"]
    entries: int
    snapshot_bytes: int
    tokens_credited: int
    shard: int
    out_of_step: bool


class Recovery:
    """The joining and catching-up side of a node; call only from the exchange's loop."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._replies: dict[tuple[PeerId, str], asyncio.Future[Fields | None]] = {}
        self._pinned: dict[Digest, tuple[FragmentState, float]] = {}
        self._expected = False

    # -- coming in ---------------------------------------------------------------------------------

    async def gather(self, expected_peers: int, timeout_s: float) -> None:
        """Wait until `expected_peers` islands, this one included, are linked; at most `timeout_s`.

        Raises:
            JoinRefusedError: a peer runs with other shared settings.
        """
        node, loop = self._node, asyncio.get_running_loop()
        give_up_s = loop.time() + timeout_s
        node.context.founders = max(node.context.founders, expected_peers)
        while len(node.peers.live()) + 1 < expected_peers:
            node.raise_if_refused()
            if loop.time() >= give_up_s:
                logger.warning(
                    "%d of %d expected islands are here after %g s; going on without the others",
                    len(node.peers.live()) + 1,
                    expected_peers,
                    timeout_s,
                )
                break
            await node.changed.wait(min(1.0, give_up_s - loop.time()))
        node.raise_if_refused()

    def common_checkpoint(self, own: Sequence[int]) -> int | None:
        """The newest checkpoint that all islands which start now have; else this island's newest."""
        if not own:
            return None
        running = [peer for peer in self._node.peers.live() if peer.state.phase == "training"]
        common = set(own)
        for peer in self._node.peers.live():
            common &= set(peer.state.checkpoints)
        if common and all(peer.state.inner_step <= max(own) for peer in running):
            return max(common)
        return max(own)

    async def join(self, *, fresh: bool, alone_ok: bool, num_shards: int, timeout_s: float) -> JoinReport:
        """Take over the swarm's state, or found the run.

        Args:
            fresh: no checkpoint was loaded.
            alone_ok: this island may found the run if nobody is there.
            num_shards: parts of the data, to claim one if none was set; 0 = no data to claim.

        Raises:
            JoinRefusedError: the swarm has other shared settings, or no shard is free.
            PeerUnreachableError: no island that has the state answered in time.
        """
        node, loop = self._node, asyncio.get_running_loop()
        state = node.peers.state
        node.publish_position()
        give_up_s = loop.time() + timeout_s
        while True:
            node.raise_if_refused()
            known = [peer for peer in node.peers.live() if peer.state.heads]
            running = [peer for peer in known if peer.state.phase == "training"]
            starting = [peer for peer in node.peers.live() if peer.state.phase == "starting"]
            if running or self._may_found(starting, known, alone_ok):
                break
            if loop.time() >= give_up_s:
                raise PeerUnreachableError(
                    f"no island of run {node.exchange.run_id!r} came up within {timeout_s:g} s; "
                    "start one without exchange.initial_peers, or check the addresses"
                )
            await node.changed.wait(min(1.0, give_up_s - loop.time()))
        await self._wait_for_links()
        report_how: Literal["founded", "aligned", "replayed", "snapshot"] = (
            "aligned" if running else "founded"
        )
        entries = snapshot_bytes = credited = 0
        out_of_step = False
        if running:
            aligned = any(peer.state.heads == state.heads for peer in running)
            if not aligned:
                state.phase = "joining"
                node.peers.announce()
            for fragment in range(len(node.state.fragments)):
                moved = await self._come_up(fragment, give_up_s)
                entries += len(moved.entries)
                snapshot_bytes += moved.snapshot_bytes
                credited += sum(entry.tokens_of(node.exchange.peer_id) or 0 for entry in moved.entries)
            if snapshot_bytes:
                report_how = "snapshot"
            elif entries:
                report_how = "replayed"
            out_of_step = not self._started_together(running) and bool(fresh or entries or snapshot_bytes)
            if out_of_step:
                steps = [p.state.inner_step for p in node.peers.live() if p.state.phase == "training"]
                state.inner_step = max([state.inner_step, *steps])
        self._claim_shard(num_shards)
        node.rebase()
        node.context.founders = max(node.context.founders, 1 + len(node.peers.live()))
        state.phase = "training"
        node.publish_position()
        for fragment_round in node.rounds:
            fragment_round.look()
        return JoinReport(
            inner_step=state.inner_step,
            outer_steps=state.outer_steps,
            peers=tuple(sorted([peer.id for peer in node.peers.live()] + [node.exchange.peer_id])),
            how=report_how,
            entries=entries,
            snapshot_bytes=snapshot_bytes,
            tokens_credited=credited,
            shard=state.shard,
            out_of_step=out_of_step,
        )

    def _may_found(self, starting: list[Peer], known: list[Peer], alone_ok: bool) -> bool:
        """With nobody training yet: the founder starts, else the lowest id once it sees all heads."""
        if alone_ok:
            return True
        everyone = [peer.id for peer in starting]
        return bool(everyone) and len(known) >= len(starting) and self._node.exchange.peer_id < min(everyone)

    def _started_together(self, running: list[Peer]) -> bool:
        """Whether the others were waited for, and are still in their first period."""
        return self._expected and not any(any(peer.state.outer_steps) for peer in running)

    def expect_company(self) -> None:
        """Islands that were waited for in `gather` start together, from the same inner step."""
        self._expected = True

    async def _wait_for_links(self) -> None:
        """A round needs links between all; give those being dialled a moment."""
        node, loop = self._node, asyncio.get_running_loop()
        give_up_s = loop.time() + LINK_PATIENCE_S
        while node.peers.dialing() and loop.time() < give_up_s:
            await node.changed.wait(min(0.2, give_up_s - loop.time()))

    def _claim_shard(self, num_shards: int) -> None:
        state = self._node.peers.state
        if num_shards == 0:
            return
        taken = {peer.state.shard for peer in self._node.peers.live()}
        if state.shard < 0:
            free = [shard for shard in range(num_shards) if shard not in taken]
            if not free:
                self._node.refusals.append(
                    f"all {num_shards} shards of the data are claimed by live islands; raise "
                    "shared.data.shards (on all islands), or set data.shard to share one"
                )
                self._node.raise_if_refused()
            state.shard = free[0]
        elif state.shard in taken:
            logger.warning("shard %d of the data is used by another live island, too", state.shard)

    async def _come_up(self, fragment: int, give_up_s: float) -> Moved:
        """Catch up as a joiner; donors that fail are asked again until `give_up_s` in loop time.

        Raises:
            PeerUnreachableError: nobody handed the state over in time.
        """
        loop, moved = asyncio.get_running_loop(), Moved([], 0)
        while True:
            reason = "the islands that train have gone"
            try:
                part = await self.catch_up(fragment, joining=True)
                moved.entries += part.entries
                moved.snapshot_bytes += part.snapshot_bytes
                if self._caught_up(fragment):
                    return moved
            except PeerUnreachableError as error:
                reason = str(error)
            if loop.time() >= give_up_s:
                raise PeerUnreachableError(f"joining failed: {reason}; start this island again")
            await self._node.changed.wait(min(1.0, give_up_s - loop.time()))

    def _caught_up(self, fragment: int) -> bool:
        """Whether somebody trains who has nothing that this peer lacks."""
        return any(
            peer.state.phase == "training"
            and fragment < len(peer.state.outer_steps)
            and peer.state.outer_steps[fragment] <= self._node.state.chains[fragment].outer_step
            for peer in self._node.peers.live()
        )

    # -- catching up -------------------------------------------------------------------------------

    async def catch_up(self, fragment: int, *, joining: bool = False) -> Moved:
        """Follow the peers that are ahead; a joiner also leaves a head that nobody else has.

        A donor that fails is passed over; what could not be fetched is tried again at the next call.
        """
        node = self._node
        moved = Moved([], 0)
        chain = node.state.chains[fragment]
        donors = node.rounds[fragment].ahead()
        if joining and not donors:
            same_height = [p for p in node.peers.live() if p.state.phase == "training" and p.state.heads]
            if same_height and all(p.state.heads[fragment] != chain.head for p in same_height):
                donors = same_height
        for donor in donors:
            try:
                reply = await self._ask(
                    donor.id,
                    "entries",
                    {"fragment": fragment, "outer_step": chain.outer_step, "head": chain.head},
                )
                self._commit_accepted(fragment, reply)
                entries = self._worth_replaying(fragment, reply)
                if entries is None:
                    moved.snapshot_bytes += await self._take_state(fragment, donor.id)
                else:
                    others = [peer.id for peer in donors if peer.id != donor.id]
                    await self._replay(fragment, entries, [donor.id, *others], moved)
                return moved
            except (PeerUnreachableError, ProtocolError) as error:
                logger.warning("catching up from %s failed: %s", donor.id, error)
                moved.failed += 1
        if donors and joining:
            raise PeerUnreachableError(f"none of {len(donors)} islands could hand over fragment {fragment}")
        if donors:
            await asyncio.sleep(0.2)  # all donors failed; they may be about to drop off the list
        return moved

    def _commit_accepted(self, fragment: int, reply: Fields) -> None:
        """Commit what this peer has voted for, if that is what the others have committed next.

        Its own part in it is credited then, also where a snapshot skips the entry.
        """
        if reply.has("entries"):
            for item in reply.items("entries", MAX_ENTRIES)[:1]:
                entry = parse_entry(Fields("entries.entry", item))
                self._node.rounds[fragment].commit_voted(entry.hash)

    def _worth_replaying(self, fragment: int, reply: Fields) -> list[Entry] | None:
        """The entries of a reply, or None if there are none or the state itself is smaller."""
        if not reply.has("entries"):
            return None
        items = reply.items("entries", MAX_ENTRIES)
        entries = [parse_entry(Fields("entries.entry", item)) for item in items]
        entries = self._announced(fragment, entries)
        state_bytes = self._node.state.states[fragment].size_bytes
        return entries if sum(entry.update_bytes for entry in entries) <= state_bytes else None

    def _announced(self, fragment: int, entries: list[Entry]) -> list[Entry]:
        """The entries up to the last one that is some island's head: those before are covered by its hash.

        Raises:
            ProtocolError: they are no chain, or lead to no head that anybody has.
        """
        for entry, following in pairwise(entries):
            if following.previous != entry.hash:
                raise ProtocolError(f"entry {following.outer_step} does not follow entry {entry.outer_step}")
        states = [peer.state for peer in self._node.peers.live() if peer.state.phase == "training"]
        heads = {state.heads[fragment] for state in states if fragment < len(state.heads)}
        known = [index for index, entry in enumerate(entries) if entry.hash in heads]
        if entries and not known:
            raise ProtocolError("the entries lead to a head that no live island has")
        return entries[: known[-1] + 1] if known else []

    async def _replay(self, fragment: int, entries: list[Entry], donors: list[PeerId], moved: Moved) -> None:
        node = self._node
        for entry in entries:
            if node.state.chains[fragment].outer_step >= entry.outer_step:
                continue  # committed here meanwhile
            accepted = await node.rounds[fragment].fetch(entry, donors, NO_BALLOT)
            if node.state.chains[fragment].outer_step + 1 == entry.outer_step:
                node.adopt(accepted)
                moved.entries.append(entry)

    async def _take_state(self, fragment: int, donor: PeerId) -> int:
        node = self._node
        reply = await self._ask(donor, "snapshot", {"fragment": fragment})
        digest, outer_step, head = reply.digest("digest"), reply.integer("outer_step"), reply.digest("head")
        last = parse_entry(reply.inner("last")) if reply.has("last") else None
        if last is not None and (
            last.hash != head or last.state_digest != digest or last.outer_step != outer_step
        ):
            raise ProtocolError("the snapshot's state is not the one that its ledger names")
        if head == node.state.chains[fragment].head:
            return 0  # it has come over to this peer's side of a fork meanwhile
        peer = node.peers.linked.get(donor)
        if peer is None or fragment >= len(peer.state.heads):
            raise PeerUnreachableError(f"{donor} is gone")
        size = node.state.states[fragment].size_bytes
        data = await node.blobs.fetch(digest, size, [donor], node.deadline_s)
        node.state.states[fragment] = FragmentState.from_bytes(data, digest)
        node.state.chains[fragment].restart_at(outer_step, head, last)
        node.state.residuals[fragment] = None
        node.note_snapshot(fragment)
        node.rounds[fragment].restart()
        node.publish_position()
        return size

    async def _ask(self, peer: PeerId, kind: str, body: dict[str, Json]) -> Fields:
        key = (peer, f"{kind} {body['fragment']}")
        future: asyncio.Future[Fields | None] = asyncio.get_running_loop().create_future()
        self._replies[key] = future
        try:
            await self._node.exchange.send(peer, Message(f"{kind}?", body))
            reply = await asyncio.wait_for(future, self._node.deadline_s)
        except TimeoutError as error:
            raise PeerUnreachableError(f"{peer} did not answer within {self._node.deadline_s:g} s") from error
        finally:
            self._replies.pop(key, None)
        if reply is None:
            raise PeerUnreachableError(f"{peer} is gone")
        return reply

    # -- answering ---------------------------------------------------------------------------------

    def on_reply(self, peer: PeerId, fields: Fields) -> None:
        """`entries` or `snapshot`: hand it to whoever asked."""
        future = self._replies.get((peer, f"{fields.kind} {fields.integer('fragment')}"))
        if future is not None and not future.done():
            future.set_result(fields)

    def on_peer_down(self, peer: PeerId) -> None:
        """Stop waiting for its replies."""
        for key, future in self._replies.items():
            if key[0] == peer and not future.done():
                future.set_result(None)

    def on_entries_request(self, peer: PeerId, fields: Fields) -> None:
        """`entries?`: those after the asker's head, or null where they aren't kept."""
        fragment = fields.integer("fragment", 0, len(self._node.state.chains) - 1)
        after = self._node.state.chains[fragment].after(fields.integer("outer_step"), fields.digest("head"))
        entries: Json = [entry.to_json() for entry in after[:MAX_ENTRIES]] if after is not None else None
        self._node.peers.post(peer, Message("entries", {"fragment": fragment, "entries": entries}))

    def on_snapshot_request(self, peer: PeerId, fields: Fields) -> None:
        """`snapshot?`: name the state now, and keep it until it has been fetched."""
        fragment = fields.integer("fragment", 0, len(self._node.state.chains) - 1)
        state, chain = self._node.state.states[fragment], self._node.state.chains[fragment]
        self._pinned[state.digest] = (state, asyncio.get_running_loop().time())
        body: dict[str, Json] = {
            "fragment": fragment,
            "digest": state.digest,
            "outer_step": chain.outer_step,
            "head": chain.head,
            "last": chain.last.to_json() if chain.last else None,
        }
        self._node.peers.post(peer, Message("snapshot", body))

    def read_state(self, name: Digest, offset: int, length: int) -> bytes | None:
        """Part of a pinned state; drops those nobody has asked for in a while."""
        now = asyncio.get_running_loop().time()
        for digest in [d for d, (_, used_s) in self._pinned.items() if now - used_s > PINNED_S]:
            del self._pinned[digest]
        pinned = self._pinned.get(name)
        if pinned is None:
            return None
        self._pinned[name] = (pinned[0], now)
        return pinned[0].slice_bytes(offset, length)


@dataclass(slots=True)
class Moved:
    """What one catch-up did."""

    entries: list[Entry]
    snapshot_bytes: int
    failed: int = 0
