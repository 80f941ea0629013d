"""Serving those who are behind: entries of the ledger, and the state as a snapshot.

A state that somebody fetches is kept as long as it joins, and until nobody has asked for it in a while; on
disk, so that it costs no memory when training has gone on. Whoever asks for a snapshot is given the one that
is being served already if little has been committed since: then all donors serve the same bytes, and only a
few versions are ever kept.

With a version go the updates after it, as whoever fetches it has to replay them however long it took: of
each fragment up to `FOLLOWING_SHARE` of its size. Where more is committed meanwhile the version is given up,
and whoever fetches it is given a newer one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgpack

from lowcomm.errors import IslandError
from lowcomm.exchanges.base import Message
from lowcomm.exchanges.fields import Fields
from lowcomm.ledger.blobs import Blob
from lowcomm.ledger.chain import Certified, Chain, Standing
from lowcomm.ledger.entry import Entry
from lowcomm.ledger.state import FragmentState, OuterState
from lowcomm.ledger.store import UpdateStore
from lowcomm.ledger.update import Update
from lowcomm.peers.table import Peers
from lowcomm.storage.files import io_reason
from lowcomm.types import Digest, Json, PeerId

logger = logging.getLogger(__name__)

MAX_ENTRIES = 256
MAX_POINTS = 64
MAX_REPLY_BYTES = 1 << 19
"""Of one reply; whoever lacks more asks again."""
PINNED_S = 600.0
"""A state is kept for so long after it was last asked for, or whoever joins with it was last here."""
BUSY_S = 30.0
"""Whoever asks for pieces of a version again within this time is still fetching it."""
MAX_PINNED = 2
"""Versions of one fragment's state kept for others."""
REPLAY_SHARE = 0.25
"""A version is given out again while what was committed since is less than this part of its size."""
FOLLOWING_SHARE = 4.0
"""Of the size of a fragment's state: so much of the updates after a version that somebody fetches is kept on
disk, beside what is kept for anybody."""


class SpooledState:
    """A fragment's state in a file without a name."""

    paced = True

    def __init__(self, file: IO[bytes], manifest: bytes) -> None:
        self._file, self.manifest = file, manifest
        self._reading = threading.Lock()

    def read(self, offset: int, length: int) -> bytes | None:
        """Bytes of the anchor and then each slot."""
        with self._reading:  # a number of a closed file may be that of another one
            return None if self._file.closed else os.pread(self._file.fileno(), length, offset)

    def close(self) -> None:
        """Give the file up, which takes a moment where it is large."""
        with self._reading:
            self._file.close()


def spool(state: FragmentState, folder: Path | None) -> SpooledState:
    """Write a state into a file.

    Raises:
        OSError: the disk is full.
        IslandError: a rank of this island is gone.
    """
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as the blob
    for part in state.parts():
        file.write(part)
    file.flush()
    return SpooledState(file, state.manifest)


def _page(found: Sequence[Certified]) -> list[Json]:
    """As many of the entries as one reply may hold."""
    entries: list[Json] = []
    size = 0
    for certified in found[:MAX_ENTRIES]:
        item = certified.to_json()
        size += len(msgpack.packb(item))
        if entries and size > MAX_REPLY_BYTES:
            break
        entries.append(item)
    return entries


@dataclass(slots=True)
class _Pinned:
    """A version that is served.

    Attributes:
        before: the entry before the tip, whose participants decided that one.
        used_s: when one of its takers was last seen.
        takers: have asked for it.
    """

    blob: FragmentState | SpooledState
    outer_step: int
    head: Digest
    tip: Certified | None
    before: Entry | None
    used_s: float
    takers: set[PeerId] = field(default_factory=set)

    @property
    def standing(self) -> Standing:
        return Standing(self.tip.entry.total_tokens if self.tip else 0, self.outer_step)


@dataclass(slots=True)
class _Following:
    """What was committed since the oldest version of a fragment that is served."""

    chain: Chain
    updates: UpdateStore

    def append(self, certified: Certified, update: Update) -> None:
        """Keep what was committed; where this peer has left that history, nothing of it."""
        if certified.entry.previous == self.chain.head:
            self.chain.append(certified, self.updates.put(update))


class Donor:
    """The giving side of one peer; call only from the exchange's loop.

    Args:
        folder: where states that are served are spooled; None = where temporary files go.
        pool: writes them.
    """

    def __init__(self, state: OuterState, peers: Peers, folder: Path | None, pool: Executor) -> None:
        self._state, self._peers, self._folder, self._pool = state, peers, folder, pool
        self._pinned: list[dict[Digest, _Pinned]] = [{} for _ in state.fragments]
        self._following: dict[int, _Following] = {}

    def on_entries_request(self, peer: PeerId, fields: Fields) -> None:
        """`entries?`: those after the asker's head, or null where they aren't kept."""
        fragment = fields.integer("fragment", 0, len(self._state.chains) - 1)
        after = self._after(fragment, fields.integer("outer_step"), fields.digest("head"))
        entries: list[Json] | None = None
        if after is not None:
            entries = _page(after)
        self._peers.post(peer, Message("entries", {"fragment": fragment, "entries": entries}))

    def on_branch_request(self, peer: PeerId, fields: Fields) -> None:
        """`branch?`: the entries after the newest of the asker's points that is in this history, or null.

        Without points the newest ones until an outer step.
        """
        fragment = fields.integer("fragment", 0, len(self._state.chains) - 1)
        points: list[tuple[int, Digest]] = []
        for item in fields.items("points", MAX_POINTS):
            point = Fields("branch?.point", item)
            points.append((point.integer("outer_step"), point.digest("head")))
        chain = self._state.chains[fragment]
        entries: list[Json] | None = None
        if not points and fields.has("until"):
            entries = _page(chain.until(fields.integer("until")))[::-1]
        elif (found := chain.branch(points)) is not None:
            entries = _page(found)
        self._peers.post(peer, Message("branch", {"fragment": fragment, "entries": entries}))

    def on_snapshot_request(self, peer: PeerId, fields: Fields) -> None:
        """`snapshot?`: name a state that is served from now on, if possible the one that is asked for."""
        fragment = fields.integer("fragment", 0, len(self._state.chains) - 1)
        wanted = fields.digest("wanted") if fields.has("wanted") else None
        least = Standing(fields.integer("total_tokens"), fields.integer("outer_step"))
        digest, pinned = self._version(fragment, wanted, least)
        pinned.takers.add(peer)
        body: dict[str, Json] = {
            "fragment": fragment,
            "digest": digest,
            "outer_step": pinned.outer_step,
            "head": pinned.head,
            "last": pinned.tip.to_json() if pinned.tip else None,
            "before": pinned.before.to_json() if pinned.before else None,
        }
        self._peers.post(peer, Message("snapshot", body))

    def committed(self, certified: Certified, update: Update) -> None:
        """An entry was committed here: who fetches an earlier state will need its update."""
        following = self._following.get(certified.entry.fragment)
        if following is not None:
            following.append(certified, update)
            self._tidy(certified.entry.fragment)

    def _version(self, fragment: int, wanted: Digest | None, least: Standing) -> tuple[Digest, _Pinned]:
        """The version to serve to a peer that has use for one from `least` on."""
        self._tidy(fragment)
        kept, current, now_s = self._pinned[fragment], self._state.states[fragment], self._now_s()
        useful = sorted(
            ((digest, pinned) for digest, pinned in kept.items() if pinned.standing >= least),
            key=lambda item: -item[1].outer_step,
        )
        for digest, pinned in useful:
            since = self._after(fragment, pinned.outer_step, pinned.head) or []
            little = (
                sum(certified.entry.update_bytes for certified in since) <= REPLAY_SHARE * current.size_bytes
            )
            if digest == wanted or (wanted not in kept and wanted != current.digest and little):
                pinned.used_s = now_s
                return digest, pinned
        if current.digest in kept:
            return current.digest, kept[current.digest]
        if len(kept) >= MAX_PINNED:
            idle = [digest for digest, pinned in kept.items() if not self._is_taken(pinned)]
            if useful and not idle:  # a version that is being fetched is not given up for the next one
                return useful[0]
            self._drop(fragment, min(idle or kept, key=lambda digest: kept[digest].used_s))
        return current.digest, self._pin(fragment, current)

    def _pin(self, fragment: int, state: FragmentState) -> _Pinned:
        """Serve the state as it is now, and keep the updates that come after it."""
        chain = self._state.chains[fragment]
        before = chain.entry_at(chain.outer_step - 1)
        pinned = _Pinned(
            state, chain.outer_step, chain.head, chain.tip, before.entry if before else None, self._now_s()
        )
        self._pinned[fragment][state.digest] = pinned
        if fragment not in self._following:
            after = Chain(self._state.run_id, fragment, state.digest)
            after.restart_at(chain.outer_step, chain.head, chain.tip)
            capacity_bytes = int(FOLLOWING_SHARE * state.size_bytes)
            self._following[fragment] = _Following(
                after, UpdateStore(capacity_bytes, self._folder, self._pool)
            )
        asyncio.get_running_loop().run_in_executor(self._pool, self._spool, pinned, state)
        return pinned

    def _spool(self, pinned: _Pinned, state: FragmentState) -> None:
        try:
            pinned.blob = spool(state, self._folder)
        except (OSError, IslandError) as error:
            logger.warning("a snapshot is served from memory: %s", io_reason(error))

    def _after(self, fragment: int, outer_step: int, head: Digest) -> list[Certified] | None:
        """The entries after `head`, also those that are only kept for whoever fetches a state."""
        return self._chain_from(fragment, outer_step, head).after(outer_step, head)

    def _chain_from(self, fragment: int, outer_step: int, head: Digest) -> Chain:
        """The chain that has what follows `head`, if one has."""
        own, following = self._state.chains[fragment], self._following.get(fragment)
        if following is None or following.chain.head != own.head or own.follows(outer_step, head):
            return own
        return following.chain

    def _tidy(self, fragment: int) -> None:
        """Give up versions that nobody needs, or that nobody can come here from any more."""
        now_s, kept = self._now_s(), self._pinned[fragment]
        for digest, pinned in list(kept.items()):
            if self._has_joiner(pinned):
                pinned.used_s = now_s
            way = self._chain_from(fragment, pinned.outer_step, pinned.head)
            if not way.follows(pinned.outer_step, pinned.head):
                logger.info(
                    "fragment %d: the state after outer step %d is not served any more: what was committed "
                    "since is more than %g times its size, or it is of another history",
                    fragment, pinned.outer_step, FOLLOWING_SHARE,
                )  # fmt: skip
            elif now_s - pinned.used_s <= PINNED_S:
                continue
            self._drop(fragment, digest)
        if not kept and (following := self._following.pop(fragment, None)) is not None:
            asyncio.get_running_loop().run_in_executor(self._pool, following.updates.close)

    def _drop(self, fragment: int, digest: Digest) -> None:
        blob = self._pinned[fragment].pop(digest).blob
        if isinstance(blob, SpooledState):
            asyncio.get_running_loop().run_in_executor(self._pool, blob.close)

    def _is_taken(self, pinned: _Pinned) -> bool:
        """Whether somebody fetches it now."""
        return self._has_joiner(pinned) or self._now_s() - pinned.used_s < BUSY_S

    def _has_joiner(self, pinned: _Pinned) -> bool:
        takers = [self._peers.linked.get(taker) for taker in pinned.takers]
        return any(t is not None and t.greeted and t.state.phase in ("starting", "joining") for t in takers)

    def find(self, name: Digest) -> Blob | None:
        """A state that is served, or an update after one; drops those nobody has asked for in a while."""
        for fragment, kept in enumerate(self._pinned):
            if kept:
                self._tidy(fragment)
            if name in kept:
                kept[name].used_s = self._now_s()
                return kept[name].blob
            following = self._following.get(fragment)
            if following is not None and (update := following.chain.update(name)) is not None:
                return update
        return None

    def close(self) -> None:
        """Give all files up."""
        for following in self._following.values():
            following.updates.close()

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()
