"""Serving those who are behind: entries of the ledger, and the state as a snapshot.

A state that somebody fetches is kept until nobody has asked for it in a while, on disk, so that it
costs no memory when training has gone on. Whoever asks for a snapshot is given the one that is being
served already if little has been committed since: then all donors serve the same bytes, and only a
few versions are ever kept.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgpack

from lowcomm.errors import IslandError
from lowcomm.exchanges.base import Message
from lowcomm.exchanges.fields import Fields
from lowcomm.ledger.blobs import Blob
from lowcomm.ledger.entry import Entry
from lowcomm.ledger.state import FragmentState, OuterState
from lowcomm.peers.table import Peers
from lowcomm.storage.files import io_reason
from lowcomm.types import Digest, Json, PeerId

logger = logging.getLogger(__name__)

MAX_ENTRIES = 256
MAX_REPLY_BYTES = 1 << 19
"""Of one reply; whoever lacks more asks again."""
PINNED_S = 600.0
"""A state is kept for so long after it was last asked for."""
MAX_PINNED = 2
"""Versions of one fragment's state kept for others."""
REPLAY_SHARE = 0.25
"""A version is given out again while what was committed since is less than this part of its size."""


class SpooledState:
    """A fragment's state in a file without a name."""

    paced = True

    def __init__(self, file: IO[bytes], manifest: bytes) -> None:
        self._file, self.manifest = file, manifest

    def read(self, offset: int, length: int) -> bytes | None:
        """Bytes of `anchor || momentum`."""
        return os.pread(self._file.fileno(), length, offset)


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


@dataclass(slots=True)
class _Pinned:
    blob: Blob
    outer_step: int
    head: Digest
    last: Entry | None
    used_s: float


class Donor:
    """The giving side of one peer; call only from the exchange's loop.

    Args:
        folder: where states that are served are spooled; None = where temporary files go.
        pool: writes them.
    """

    def __init__(self, state: OuterState, peers: Peers, folder: Path | None, pool: Executor) -> None:
        self._state, self._peers, self._folder, self._pool = state, peers, folder, pool
        self._pinned: list[dict[Digest, _Pinned]] = [{} for _ in state.fragments]

    def on_entries_request(self, peer: PeerId, fields: Fields) -> None:
        """`entries?`: those after the asker's head, or null where they aren't kept."""
        fragment = fields.integer("fragment", 0, len(self._state.chains) - 1)
        after = self._state.chains[fragment].after(fields.integer("outer_step"), fields.digest("head"))
        entries: list[Json] | None = None
        if after is not None:
            entries, size = [], 0
            for entry in after[:MAX_ENTRIES]:
                item = entry.to_json()
                size += len(msgpack.packb(item))
                if entries and size > MAX_REPLY_BYTES:
                    break
                entries.append(item)
        self._peers.post(peer, Message("entries", {"fragment": fragment, "entries": entries}))

    def on_snapshot_request(self, peer: PeerId, fields: Fields) -> None:
        """`snapshot?`: name a state that is served from now on, if possible the one that is asked for."""
        fragment = fields.integer("fragment", 0, len(self._state.chains) - 1)
        wanted = fields.digest("wanted") if fields.has("wanted") else None
        digest, pinned = self._version(fragment, wanted)
        body: dict[str, Json] = {
            "fragment": fragment,
            "digest": digest,
            "outer_step": pinned.outer_step,
            "head": pinned.head,
            "last": pinned.last.to_json() if pinned.last else None,
        }
        self._peers.post(peer, Message("snapshot", body))

    def _version(self, fragment: int, wanted: Digest | None) -> tuple[Digest, _Pinned]:
        now_s, kept, chain = self._now_s(), self._pinned[fragment], self._state.chains[fragment]
        current = self._state.states[fragment]
        for digest in [d for d, p in kept.items() if chain.after(p.outer_step, p.head) is None]:
            del kept[digest]  # the way from there to here is not kept any more
        for digest, pinned in sorted(kept.items(), key=lambda item: -item[1].outer_step):
            since = chain.after(pinned.outer_step, pinned.head) or []
            little = sum(entry.update_bytes for entry in since) <= REPLAY_SHARE * current.size_bytes
            if digest == wanted or (wanted not in kept and wanted != current.digest and little):
                pinned.used_s = now_s
                return digest, pinned
        pinned = kept[current.digest] = _Pinned(current, chain.outer_step, chain.head, chain.last, now_s)
        while len(kept) > MAX_PINNED:
            del kept[min(kept, key=lambda digest: kept[digest].used_s)]
        asyncio.get_running_loop().run_in_executor(self._pool, self._spool, pinned, current)
        return current.digest, pinned

    def _spool(self, pinned: _Pinned, state: FragmentState) -> None:
        try:
            pinned.blob = spool(state, self._folder)
        except (OSError, IslandError) as error:
            logger.warning("a snapshot is served from memory: %s", io_reason(error))

    def find(self, name: Digest) -> Blob | None:
        """A state that is served; drops those nobody has asked for in a while."""
        now_s = self._now_s()
        for kept in self._pinned:
            for digest in [d for d, pinned in kept.items() if now_s - pinned.used_s > PINNED_S]:
                del kept[digest]
            if name in kept:
                kept[name].used_s = now_s
                return kept[name].blob
        return None

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()
