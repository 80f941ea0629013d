"""The outer state of a run: anchor, outer momentum and residual of each fragment, and the chains.

Vectors in here are replaced, never changed in place: a donor that serves a snapshot, or the loop
that reads an anchor, holds one consistent version for as long as it keeps the reference. Each rank of
the island keeps its part of them (`lowcomm.islands.vectors`); nothing in here makes one whole.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowcomm.algorithms.aggregation import Aggregation, Mean
from lowcomm.algorithms.fragments import Fragment
from lowcomm.algorithms.outer_optimizers import OuterOptimizer
from lowcomm.codecs.base import Codec
from lowcomm.errors import CheckpointError, CodecError, IslandError, ProtocolError
from lowcomm.islands.vectors import FP32_BYTES, HostVectors, Vector, Vectors, bytes_of, spans
from lowcomm.ledger.chain import Chain
from lowcomm.ledger.chunks import decode_mean, shares_of, take
from lowcomm.ledger.entry import Entry, hash_value
from lowcomm.ledger.pieces import make_manifest, name_of
from lowcomm.ledger.ranges import chunks_of
from lowcomm.ledger.residual import Residual
from lowcomm.ledger.store import UpdateStore
from lowcomm.ledger.update import Update
from lowcomm.types import Digest, Json

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FragmentState:
    """Anchor and outer momentum of one fragment after some outer step; on the ranks' hosts.

    Attributes:
        manifest: the hashes of the pieces of `anchor || momentum`.
        paced: serving it waits for the upload rate of snapshots.
    """

    anchor: Vector
    momentum: Vector
    manifest: bytes
    paced: bool = True

    @staticmethod
    def of(anchor: Vector, momentum: Vector) -> FragmentState:
        """Hash the two and hold them."""
        return FragmentState(anchor, momentum, make_manifest(_parts_of(anchor, momentum)))

    @property
    def digest(self) -> Digest:
        """What a ledger entry calls this state."""
        return name_of(self.manifest)

    @property
    def size_bytes(self) -> int:
        return 2 * FP32_BYTES * self.anchor.elements

    def parts(self) -> Iterator[memoryview]:
        """The bytes of `anchor || momentum`, in order.

        Raises:
            IslandError: a rank is gone.
        """
        return _parts_of(self.anchor, self.momentum)

    def read(self, offset: int, length: int) -> bytes | None:
        """Part of `anchor || momentum`, for a peer that takes a snapshot; None if a rank is gone."""
        half, end = FP32_BYTES * self.anchor.elements, offset + length
        try:
            return _cut(self.anchor, offset, end) + _cut(self.momentum, offset - half, end - half)
        except IslandError as error:
            logger.warning("a snapshot can't be served any more: %s", error)
            return None


def _parts_of(*vectors: Vector) -> Iterator[memoryview]:
    for vector in vectors:
        for start, stop in spans(vector.elements):
            yield bytes_of(vector.load(start, stop))


def _cut(vector: Vector, start: int, end: int) -> bytes:
    """Bytes `start` to `end` of a vector, as far as it has them."""
    start, end = max(0, start), min(end, FP32_BYTES * vector.elements)
    if start >= end:
        return b""
    view = bytes_of(vector.load(start // FP32_BYTES, -(-end // FP32_BYTES)))
    skipped = start % FP32_BYTES
    return bytes(view[skipped : skipped + end - start])


@dataclass(frozen=True, slots=True)
class Position:
    """Where one fragment stands: its state, what encodings have lost so far, and its place in the ledger."""

    state: FragmentState
    residual: Residual | None
    chain: dict[str, Json]


class OuterState:
    """All fragments' states, residuals and chains.

    Args:
        anchors: of the fragments, in order, 1-D fp32; taken one at a time.
        vectors: where states are kept; None = in this process.
    """

    def __init__(
        self,
        run_id: str,
        fragments: Sequence[Fragment],
        anchors: Iterable[Tensor],
        optimizer: OuterOptimizer,
        codec: Codec,
        aggregation: Aggregation | None = None,
        vectors: Vectors | None = None,
    ) -> None:
        self.run_id = run_id
        self.fragments = tuple(fragments)
        self.optimizer = optimizer
        self.codec = codec
        self.aggregation = aggregation or Mean()
        self.vectors = vectors or HostVectors()
        self.states = [self._hold(anchor, torch.zeros_like(anchor)) for anchor in anchors]
        self.residuals: list[Residual | None] = [None] * len(self.fragments)
        self.chains = [Chain(run_id, f.index, s.digest) for f, s in zip(fragments, self.states, strict=True)]
        self.updates = UpdateStore(self.size_bytes)

    @property
    def size_bytes(self) -> int:
        """Of all anchors and momenta."""
        return sum(state.size_bytes for state in self.states)

    def keep_updates(self, folder: Path | None, pool: Executor) -> None:
        """Keep the updates to come in a file in `folder`, written by `pool`."""
        self.updates = UpdateStore(self.size_bytes, folder, pool)

    @property
    def digest(self) -> Digest:
        """Over all fragments' state digests."""
        return hash_value([state.digest for state in self.states])

    def apply(self, entry: Entry, update: Update) -> FragmentState:
        """The state after `entry`, recomputed from the state now and the encoded mean. Pure.

        Raises:
            ProtocolError: the update is not what the entry names, or gives another state.
        """
        state = self.states[entry.fragment]
        if update.digest != entry.update_hash:
            raise ProtocolError(
                f"the update of outer step {entry.outer_step} has another hash than its entry"
            )
        elements = state.anchor.elements
        anchor, momentum = self.vectors.empty(elements), self.vectors.empty(elements)
        view = update.whole
        shares = shares_of([tokens for _, tokens in entry.participants])
        try:
            for _, start, stop in chunks_of(entry.stops, entry.chunk_elements):
                payload, view = take(view)
                mean = decode_mean(payload, stop - start, self.codec, self.aggregation, shares)
                with anchor.filling(start, stop) as new_anchor, momentum.filling(start, stop) as new_momentum:
                    before = state.anchor.load(start, stop), state.momentum.load(start, stop)
                    self.optimizer.step(*before, mean, new_anchor, new_momentum, entry.outer_step)
        except CodecError as error:
            raise ProtocolError(f"the update of outer step {entry.outer_step} is damaged: {error}") from error
        after = FragmentState.of(anchor, momentum)
        if after.digest != entry.state_digest:
            raise ProtocolError(
                f"fragment {entry.fragment}, outer step {entry.outer_step}: replay gives state "
                f"{after.digest[:12]}, the ledger says {entry.state_digest[:12]}; this machine rounds "
                "differently, or the entry is forged"
            )
        return after

    def commit(self, entry: Entry, update: Update, after: FragmentState) -> None:
        """Move one fragment to the state after `entry`."""
        self.chains[entry.fragment].append(entry, self.updates.put(update))
        self.states[entry.fragment] = after

    def position(self, fragment: int) -> Position:
        """Where a fragment stands now, by reference."""
        return Position(self.states[fragment], self.residuals[fragment], self.chains[fragment].state_dict())

    def read(self, fragment: int, saved: Mapping[str, Any]) -> Position:
        """Check what `saved_position` gave, and make vectors of it. Hashes all of it; changes nothing.

        Raises:
            CheckpointError: it is of another size, or its tensors don't match its ledger position.
        """
        found, expected = saved["anchor"].numel(), self.fragments[fragment].elements
        if found != expected:
            raise CheckpointError(
                f"fragment {fragment}: expected {expected} elements, the checkpoint has {found}"
            )
        state = self._hold(saved["anchor"], saved["momentum"])
        chain = Chain(self.run_id, fragment, state.digest)
        chain.load_state_dict(saved["chain"])
        if chain.last is not None and chain.last.state_digest != state.digest:
            raise CheckpointError(
                f"fragment {fragment}: the checkpoint's tensors have digest "
                f"{state.digest[:12]}, its ledger says {chain.last.state_digest[:12]}"
            )
        residual = Residual.of(saved["residual"], self.vectors) if saved["residual"] else None
        return Position(state, residual, chain.state_dict())

    def restore(self, fragment: int, position: Position) -> None:
        """Put one fragment to where `read` found it."""
        self.chains[fragment].load_state_dict(position.chain)
        self.states[fragment], self.residuals[fragment] = position.state, position.residual

    def _hold(self, anchor: Tensor, momentum: Tensor) -> FragmentState:
        return FragmentState.of(self.vectors.hold(anchor), self.vectors.hold(momentum))


def saved_position(position: Position) -> dict[str, Any]:
    """Of one fragment, for a checkpoint: tensors by reference where they lie here."""
    return {
        "anchor": position.state.anchor.load(),
        "momentum": position.state.momentum.load(),
        "residual": position.residual.state_dict() if position.residual else None,
        "chain": position.chain,
    }
