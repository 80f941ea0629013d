"""The outer state of a run: anchor, outer optimizer's slots and residual of each fragment, and the chains.

Vectors in here are replaced, never changed in place: a donor that serves a snapshot, or the loop
that reads an anchor, holds one consistent version for as long as it keeps the reference. Each rank of
the island keeps its part of them (`lowcomm.islands.vectors`); nothing in here makes one whole.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lowcomm.algorithms.aggregation import Aggregation
from lowcomm.algorithms.aggregation.mean import Mean
from lowcomm.algorithms.fragments import Fragment
from lowcomm.algorithms.outer_optimizers import OuterOptimizer, slot_names
from lowcomm.codecs.base import Codec
from lowcomm.errors import CheckpointError, CodecError, IslandError, ProtocolError
from lowcomm.islands.vectors import FP32_BYTES, Blank, HostVectors, Vector, Vectors, bytes_of, spans
from lowcomm.ledger.certificate import Certificate
from lowcomm.ledger.chain import Certified, Chain
from lowcomm.ledger.chunks import decode_mean, shares_of, take
from lowcomm.ledger.credits import Credits, credits_after
from lowcomm.ledger.entry import Entry, hash_value
from lowcomm.ledger.pieces import make_manifest, name_of
from lowcomm.ledger.ranges import chunks_of
from lowcomm.ledger.residual import Residual
from lowcomm.ledger.store import UpdateStore
from lowcomm.ledger.update import Update
from lowcomm.spans import Spans
from lowcomm.storage.checkpoint import SLOTS, named_slots
from lowcomm.types import Digest, Json

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FragmentState:
    """Anchor and slots of the outer optimizer of one fragment after some outer step; on the ranks' hosts.

    Attributes:
        slots: by name, in the order of `OuterOptimizer.init`, each as long as the anchor.
        manifest: the hashes of the pieces of the anchor and then each slot, as one value.
        paced: serving it waits for the upload rate of snapshots.
    """

    anchor: Vector
    slots: Mapping[str, Vector]
    manifest: bytes
    paced: bool = True

    @staticmethod
    def of(anchor: Vector, slots: Mapping[str, Vector]) -> FragmentState:
        """Hash them and hold them."""
        return FragmentState(anchor, slots, make_manifest(_parts_of(anchor, *slots.values())))

    @property
    def vectors(self) -> tuple[Vector, ...]:
        """The anchor and then each slot."""
        return (self.anchor, *self.slots.values())

    @property
    def digest(self) -> Digest:
        """What a ledger entry calls this state."""
        return name_of(self.manifest)

    @property
    def size_bytes(self) -> int:
        return FP32_BYTES * self.anchor.elements * len(self.vectors)

    def parts(self) -> Iterator[memoryview]:
        """The bytes of the anchor and then each slot, in order.

        Raises:
            IslandError: a rank is gone.
        """
        return _parts_of(*self.vectors)

    def read(self, offset: int, length: int) -> bytes | None:
        """Part of what `parts` gives, for a peer that takes a snapshot; None if a rank is gone."""
        size, end = FP32_BYTES * self.anchor.elements, offset + length
        try:
            return b"".join(
                _cut(vector, offset - number * size, end - number * size)
                for number, vector in enumerate(self.vectors)
            )
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


class NextState:
    """The state of a fragment after an outer step, made range by range.

    Ranges that don't overlap may be stepped at the same time.
    """

    def __init__(self, before: FragmentState, optimizer: OuterOptimizer, vectors: Vectors) -> None:
        self._before, self._optimizer = before, optimizer
        elements = before.anchor.elements
        self._anchor = vectors.empty(elements)
        self._slots: dict[str, Blank] = {name: vectors.empty(elements) for name in before.slots}

    def step(self, mean: Tensor, start: int, stop: int, outer_step: int) -> None:
        """Step the range from `start` to `stop` along its mean pseudo-gradient."""
        before = self._before
        slots = {name: slot.load(start, stop) for name, slot in before.slots.items()}
        with ExitStack() as filled:
            anchor = filled.enter_context(self._anchor.filling(start, stop))
            after = {n: filled.enter_context(slot.filling(start, stop)) for n, slot in self._slots.items()}
            self._optimizer.step(before.anchor.load(start, stop), slots, mean, anchor, after, outer_step)

    def finish(self) -> FragmentState:
        """The state, once all of it has been stepped."""
        return FragmentState.of(self._anchor, self._slots)


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

    Attributes:
        data: digest of what entries name samples of; empty where they name none.
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
        self.vectors.keep(2 + len(slot_names(optimizer)))  # pseudo-gradient, anchor and slots
        self.states = [self._genesis(anchor) for anchor in anchors]
        self.residuals: list[Residual | None] = [None] * len(self.fragments)
        self.chains = [Chain(run_id, f.index, s.digest) for f, s in zip(fragments, self.states, strict=True)]
        self.updates = UpdateStore(self.size_bytes)
        self.data = ""

    @property
    def size_bytes(self) -> int:
        """Of all anchors and slots."""
        return sum(state.size_bytes for state in self.states)

    def keep_updates(self, folder: Path | None, pool: Executor) -> None:
        """Keep the updates to come in a file in `folder`, written by `pool`."""
        self.updates = UpdateStore(self.size_bytes, folder, pool)

    @property
    def digest(self) -> Digest:
        """Over all fragments' state digests."""
        return hash_value([state.digest for state in self.states])

    def credits_after(self, fragment: int, trained: Sequence[Spans]) -> Credits | None:
        """What the next entry credits whose participants have trained on these; the first fragment's does."""
        last = self.chains[fragment].last
        return credits_after(last.samples if last else None, self.data, trained) if fragment == 0 else None

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
        made = NextState(state, self.optimizer, self.vectors)
        view = update.whole
        shares = shares_of([tokens for _, tokens in entry.participants])
        try:
            for _, start, stop in chunks_of(entry.stops, entry.chunk_elements):
                payload, view = take(view)
                mean = decode_mean(payload, stop - start, self.codec, self.aggregation, shares)
                made.step(mean, start, stop, entry.outer_step)
        except CodecError as error:
            raise ProtocolError(f"the update of outer step {entry.outer_step} is damaged: {error}") from error
        after = made.finish()
        if after.digest != entry.state_digest:
            raise ProtocolError(
                f"fragment {entry.fragment}, outer step {entry.outer_step}: replay gives state "
                f"{after.digest[:12]}, the ledger says {entry.state_digest[:12]}; this machine rounds "
                "differently, or the entry is forged"
            )
        return after

    def commit(
        self, entry: Entry, update: Update, after: FragmentState, certificate: Certificate | None
    ) -> None:
        """Move one fragment to the state after `entry`."""
        self.chains[entry.fragment].append(Certified(entry, certificate), self.updates.put(update))
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
        state = saved_state(saved, self.vectors)
        wanted, named = tuple(self.states[fragment].slots), tuple(state.slots)
        if named != wanted:
            raise CheckpointError(
                f"fragment {fragment}: expected {_listed(wanted)} of the outer optimizer, the checkpoint has "
                f"{_listed(named)}; go on with the outer optimizer that wrote it"
            )
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

    def _genesis(self, anchor: Tensor) -> FragmentState:
        """The state before the first outer step; slots are made range by range, none is whole anywhere."""
        elements = anchor.numel()
        slots = {name: self.vectors.empty(elements) for name in slot_names(self.optimizer)}
        for start, stop in spans(elements):
            for name, values in self.optimizer.init(anchor[start:stop]).items():
                with slots[name].filling(start, stop) as slot:
                    slot.copy_(values)
        return FragmentState.of(self.vectors.hold(anchor), slots)


def _listed(slots: Sequence[str]) -> str:
    return f"the slots {', '.join(slots)}" if slots else "no slots"


def saved_state(saved: Mapping[str, Any], vectors: Vectors) -> FragmentState:
    """The state in what `saved_position` gave."""
    slots = {name: vectors.hold(slot) for name, slot in named_slots(saved).items()}
    return FragmentState.of(vectors.hold(saved["anchor"]), slots)


def saved_position(position: Position) -> dict[str, Any]:
    """Of one fragment, for a checkpoint: tensors by reference where they lie here."""
    return {
        "anchor": position.state.anchor.load(),
        SLOTS: {name: slot.load() for name, slot in position.state.slots.items()},
        "residual": position.residual.state_dict() if position.residual else None,
        "chain": position.chain,
    }
