"""Coming into a run: waiting for company, and taking over the swarm's state."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lowcomm.algorithms.intervals import furthest
from lowcomm.errors import PeerUnreachableError
from lowcomm.ledger.state import Position
from lowcomm.peers.peer import Peer
from lowcomm.recovery.catching_up import CatchingUp
from lowcomm.recovery.founders import keep_founders, kept_founders
from lowcomm.recovery.member import Member
from lowcomm.recovery.waiting import Waiting, once, tell
from lowcomm.types import PeerId

logger = logging.getLogger(__name__)

LINK_PATIENCE_S = 5.0
"""A joiner waits so long for links to all peers it has heard of, and for those that start with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinReport:
    """How this island came into the run.

    Attributes:
        inner_step: where it starts on the swarm's count.
        how: `founded` the run, was `aligned` already, `replayed` entries, or took a `snapshot`.
        entries: how many entries were replayed.
        snapshot_bytes: bytes of state taken over.
        skipped: fragments whose state was taken over: what the entries in between credited to this island is
            not known.
        credits: tokens of this island in replayed entries, one number per fragment: committed after
            the checkpoint that it resumed.
        tokens_credited: those of them that were trained after that checkpoint, so the data loader has
            to skip them.
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
    skipped: tuple[bool, ...]
    credits: tuple[int, ...]
    tokens_credited: int
    shard: int
    out_of_step: bool


@dataclass(frozen=True, slots=True)
class Joined:
    """A join that is over.

    Attributes:
        positions: where each fragment stands, with all that `report` credits.
        total_tokens: in the chains.
    """

    report: JoinReport
    positions: tuple[Position, ...]
    total_tokens: tuple[int, ...]


class Joining:
    """The joining side of a peer; call only from the exchange's loop."""

    def __init__(self, member: Member, catching_up: CatchingUp) -> None:
        self._member, self._catching_up = member, catching_up
        self._expected = False

    async def look_for_others(self) -> None:
        """Before this island goes on alone, wait for one of those that an earlier process of it knew.

        They are dialled meanwhile, and those that live dial this one. It ends after `grace_s`, so that of
        two islands one can go on where the other has died for good.
        """
        member, loop = self._member, asyncio.get_running_loop()
        if member.peers.live() or not member.remembered.before:
            return
        logger.warning(
            "looking for the other islands of run %r for %g s: %s; then this one goes on alone "
            "(--found: at once)",
            member.signer.run_id,
            member.grace_s,
            member.remembered.shown(),
        )
        give_up_s = loop.time() + member.grace_s
        while not member.peers.live() and loop.time() < give_up_s:
            member.raise_if_refused()
            await member.changed.wait(min(1.0, give_up_s - loop.time()))

    async def gather(self, expected_peers: int, timeout_s: float) -> None:
        """Wait until `expected_peers` islands, this one included, are linked; at most `timeout_s`.

        Islands that are waited for start together, from the same inner step.

        Raises:
            JoinRefusedError: a peer runs with other shared settings.
        """
        member, loop = self._member, asyncio.get_running_loop()
        self._expected = expected_peers > 1
        give_up_s = loop.time() + timeout_s
        waiting = Waiting(member, expected_peers)
        while len(member.peers.live()) + 1 < expected_peers:
            member.raise_if_refused()
            if loop.time() >= give_up_s:
                logger.warning(
                    "%d of %d expected islands are here after %g s; going on without the others",
                    len(member.peers.live()) + 1,
                    expected_peers,
                    timeout_s,
                )
                break
            waiting.look(loop.time())
            await member.changed.wait(min(1.0, give_up_s - loop.time()))
        else:
            waiting.over()
        member.raise_if_refused()

    def common_checkpoint(self, own: Sequence[int]) -> int | None:
        """The newest checkpoint that all islands which start now have; else this island's newest."""
        if not own:
            return None
        running = [peer for peer in self._member.peers.live() if peer.state.phase == "training"]
        common = set(own)
        for peer in self._member.peers.live():
            common &= set(peer.state.checkpoints)
        if common and all(peer.state.inner_step <= max(own) for peer in running):
            return max(common)
        return max(own)

    async def join(
        self, *, fresh: bool, num_shards: int, timeout_s: float, found: bool = False, over: bool = False
    ) -> Joined:
        """Take over the swarm's state, or found the run.

        Args:
            fresh: no checkpoint was loaded; then only a founder may go on where nobody is there.
            found: don't look for those that an earlier process of this island knew.
            num_shards: parts of the data, to claim one if none was set; 0 = no data to claim.
            over: all is trained, so that going on alone founds no second history.

        Raises:
            JoinRefusedError: the swarm has other shared settings, or no shard is free.
            PeerUnreachableError: no island that has the state answered in time.
        """
        member = self._member
        if not (over or found):
            await self.look_for_others()
        await self._catching_up.redo()
        member.publish_position()
        running, starting = await self._find_others(timeout_s, alone_ok=member.directory.founder or not fresh)
        if not (running or starting or over):
            member.remembered.warn_alone()
        await self._wait_for_links()
        taken = [0] * len(member.state.fragments)
        if running:
            if all(peer.state.heads != member.peers.state.heads for peer in running):
                member.peers.say(phase="joining")
                member.peers.announce()
            taken = await self._come_up_together(timeout_s)
            await self._catching_up.redo()  # what it has may only now follow on what there is
        together = self._started_together(running)
        await member.shard_claims.claim(num_shards)
        # what was replayed, and what a vote of this island's earlier process has committed
        entries = [member.submissions.take_late(fragment.index) for fragment in member.state.fragments]
        positions = tuple(member.state.position(fragment.index) for fragment in member.state.fragments)
        total_tokens = tuple(chain.total_tokens for chain in member.state.chains)
        moved = any(taken) or any(entries)
        out_of_step = bool(running) and not together and (fresh or moved)
        inner_step = member.peers.state.inner_step
        if out_of_step:
            steps = [p.state.inner_step for p in member.peers.live() if p.state.phase == "training"]
            inner_step = max(inner_step, furthest(steps))
        await self._know_founders(running, starting, found=found)
        member.peers.say(phase="training", inner_step=inner_step)
        member.publish_position()
        outer_steps = member.peers.state.outer_steps
        for fragment_round in member.rounds:
            fragment_round.look()
        member.shard_claims.look()
        member.note_others()
        if self._expected:
            await self._wait_for_company()
        me = member.signer.peer_id
        taken_over: Literal["snapshot", "replayed"] = "snapshot" if any(taken) else "replayed"
        report = JoinReport(
            inner_step=inner_step,
            outer_steps=outer_steps,
            peers=tuple(sorted([peer.id for peer in member.peers.live()] + [me])),
            how=taken_over if moved else "aligned" if running else "founded",
            entries=sum(map(len, entries)),
            snapshot_bytes=sum(taken),
            skipped=tuple(size > 0 for size in taken),
            credits=tuple(sum(entry.tokens_of(me) or 0 for entry in late) for late in entries),
            tokens_credited=0,  # the island's side knows what its checkpoint had of them
            shard=member.peers.state.shard,
            out_of_step=out_of_step,
        )
        return Joined(report, positions, total_tokens)

    async def _find_others(self, timeout_s: float, *, alone_ok: bool) -> tuple[list[Peer], list[Peer]]:
        """Those that train and those that start, once there is somebody to join, or the run may be founded.

        Raises:
            JoinRefusedError: the swarm has other shared settings.
            PeerUnreachableError: nobody came in time.
        """
        member, loop = self._member, asyncio.get_running_loop()
        give_up_s, tell_once = loop.time() + timeout_s, once(tell)
        if not member.directory.founder or member.remembered.before:
            await self._wait_for_links()  # who is linked, but has not greeted yet, may be training
        while True:
            member.raise_if_refused()
            known = [peer for peer in member.peers.live() if peer.state.heads]
            running = [peer for peer in known if peer.state.phase == "training"]
            starting = [peer for peer in member.peers.live() if peer.state.phase == "starting"]
            if running or self._may_found(starting, known, alone_ok):
                return running, starting
            if loop.time() >= give_up_s:
                raise PeerUnreachableError(
                    f"no island of run {member.signer.run_id!r} came up within {timeout_s:g} s; "
                    "start one without exchange.initial_peers, or check the addresses"
                )
            tell_once(
                f"waiting for an island of run {member.signer.run_id!r} that trains, or that may begin it"
            )
            await member.changed.wait(min(1.0, give_up_s - loop.time()))

    async def _know_founders(self, running: list[Peer], starting: list[Peer], *, found: bool) -> None:
        """Who may decide the first outer step: those who start with the founder, which tells all others.

        Raises:
            StorageError: they can't be kept for the day on which this island starts again.
        """
        member = self._member
        told = sorted(peer.state.founders for peer in running if peer.state.founders)
        company = [peer.id for peer in starting] if self._expected else []
        kept = () if found else await member.in_pool(kept_founders, member.folder)
        founders = told[0] if told else kept or tuple(sorted([member.signer.peer_id, *company]))
        await member.in_pool(keep_founders, member.folder, founders)
        member.context.founders = founders
        member.peers.say(founders=founders)
        for fragment_round in member.rounds:
            fragment_round.restart()

    def _may_found(self, starting: list[Peer], known: list[Peer], alone_ok: bool) -> bool:
        """With nobody training yet: the founder starts, else the lowest id once it sees all heads."""
        if alone_ok:
            return True
        everyone = [peer.id for peer in starting]
        return bool(everyone) and len(known) >= len(starting) and self._member.signer.peer_id < min(everyone)

    def _started_together(self, running: list[Peer]) -> bool:
        """Whether the others were waited for, and are still in their first period."""
        return self._expected and not any(any(peer.state.outer_steps) for peer in running)

    async def _wait_for_links(self) -> None:
        """A round needs links between all; give those being dialled a moment."""
        member, loop = self._member, asyncio.get_running_loop()
        give_up_s = loop.time() + LINK_PATIENCE_S
        while member.peers.dialing() and loop.time() < give_up_s:
            await member.changed.wait(min(0.2, give_up_s - loop.time()))

    async def _wait_for_company(self) -> None:
        """Who was waited for is about to train, too; whoever goes ahead waits for it in the first round."""
        member, loop = self._member, asyncio.get_running_loop()
        give_up_s = loop.time() + LINK_PATIENCE_S
        while any(peer.state.phase == "starting" for peer in member.peers.live()) and loop.time() < give_up_s:
            await member.changed.wait(give_up_s - loop.time())

    async def _come_up_together(self, patience_s: float) -> list[int]:
        """Catch up in all fragments; returns the bytes of state taken over in each.

        Raises:
            PeerUnreachableError: for `patience_s` nobody has handed anything over.
        """
        fragments = range(len(self._member.state.fragments))
        behind = set(fragments)
        tasks = [asyncio.create_task(self._come_up(f, behind, patience_s)) for f in fragments]
        try:
            taken = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._catching_up.joined()
        return taken

    async def _come_up(self, fragment: int, behind: set[int], patience_s: float) -> int:
        """Catch up as a joiner, and keep up until no fragment is in `behind`: other ones may take hours.

        Raises:
            PeerUnreachableError: see `_come_up_together`.
        """
        member, loop = self._member, asyncio.get_running_loop()
        began_s, taken = loop.time(), 0
        while True:
            reason = "the islands that train have gone"
            try:
                moved = await self._catching_up.catch_up(fragment, joining=True)
                taken += moved.snapshot_bytes
                if fragment in behind and self._caught_up(fragment):
                    behind.discard(fragment)
                    member.changed.notify()
            except PeerUnreachableError as error:
                reason = str(error)
            if not behind:
                return taken
            if loop.time() - max(began_s, self._catching_up.progress_s) >= patience_s:
                raise PeerUnreachableError(
                    f"joining failed: nothing came for {patience_s:g} s: {reason}; start this island again"
                )
            await member.changed.wait(1.0)

    def _caught_up(self, fragment: int) -> bool:
        """Whether somebody trains who has nothing that this peer lacks."""
        return any(
            standing is not None and standing <= self._member.state.chains[fragment].standing
            for standing in (peer.state.standing(fragment) for peer in self._member.peers.live())
        )
