"""The outer state of a run: anchor, outer momentum and residual of each fragment, and the chains.

Tensors in here are replaced, never changed in place: a donor that serves a snapshot, or the loop
that reads an anchor, holds one consistent version for as long as it keeps the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from lowcomm.errors import CheckpointError, CodecError, ProtocolError
from lowcomm.membership.kept import KeptUpdates
from lowcomm.membership.ledger import Chain, Entry, hash_value
from lowcomm.membership.pieces import make_manifest, name_of
from lowcomm.membership.roster import chunks_of
from lowcomm.membership.update import Update
from lowcomm.outer.chunks import decode_mean, shares_of, take
from lowcomm.outer.residual import Residual
from lowcomm.types import Digest, Json


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The little-endian bytes of a contiguous host tensor, without a copy."""
    return memoryview(tensor.numpy().data).cast("B")


@dataclass(frozen=True, slots=True)
class FragmentState:
    """Anchor and outer momentum of one fragment after some outer step; 1-D fp32 on the host.

    Attributes:
        manifest: the hashes of the pieces of `anchor || momentum`.
        paced: serving it waits for the upload rate of snapshots.
    """

    anchor: Tensor
    momentum: Tensor
    manifest: bytes
    paced: bool = True

    @staticmethod
    def of(anchor: Tensor, momentum: Tensor) -> FragmentState:
        """Hash the two and hold them."""
        return FragmentState(anchor, momentum, make_manifest((tensor_bytes(anchor), tensor_bytes(momentum))))

    @property
    def digest(self) -> Digest:
        """What a ledger entry calls this state."""
        return name_of(self.manifest)

    @property
    def size_bytes(self) -> int:
        return 8 * self.anchor.numel()

    def read(self, offset: int, length: int) -> bytes:
        """Part of `anchor || momentum`, for a peer that takes a snapshot."""
        half = 4 * self.anchor.numel()
        anchor, momentum = tensor_bytes(self.anchor), tensor_bytes(self.momentum)
        end = offset + length
        return bytes(anchor[offset:end]) + bytes(momentum[max(0, offset - half) : max(0, end - half)])


@dataclass(frozen=True, slots=True)
class Position:
    """Where one fragment stands: its state, what encodings have lost so far, and its place in the ledger."""

    state: FragmentState
    residual: Residual | None
    chain: dict[str, Json]


class OuterState:
    """All fragments' states, residuals and chains."""

    def __init__(
        self,
        run_id: str,
        fragments: Sequence[Fragment],
        anchors: Sequence[Tensor],
        optimizer: OuterOptimizer,
        codec: Codec,
        aggregation: Aggregation | None = None,
    ) -> None:
        self.run_id = run_id
        self.fragments = tuple(fragments)
        self.optimizer = optimizer
        self.codec = codec
        self.aggregation = aggregation or Mean()
        self.states = [FragmentState.of(a, torch.zeros_like(a)) for a in anchors]
        self.residuals: list[Residual | None] = [None] * len(self.fragments)
        self.chains = [Chain(run_id, f.index, s.digest) for f, s in zip(fragments, self.states, strict=True)]
        self.updates = KeptUpdates(self.size_bytes)

    @property
    def size_bytes(self) -> int:
        """Of all anchors and momenta."""
        return sum(state.size_bytes for state in self.states)

    def keep_updates(self, folder: Path | None, pool: Executor) -> None:
        """Keep the updates to come in a file in `folder`, written by `pool`."""
        self.updates = KeptUpdates(self.size_bytes, folder, pool)

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
        mean = torch.empty_like(state.anchor)
        view = update.whole
        shares = shares_of([tokens for _, tokens in entry.participants])
        try:
            for _, start, stop in chunks_of(entry.stops, entry.chunk_elements):
                payload, view = take(view)
                mean[start:stop] = decode_mean(payload, stop - start, self.codec, self.aggregation, shares)
        except CodecError as error:
            raise ProtocolError(f"the update of outer step {entry.outer_step} is damaged: {error}") from error
        anchor, momentum = torch.empty_like(state.anchor), torch.empty_like(state.momentum)
        self.optimizer.step(state.anchor, state.momentum, mean, anchor, momentum)
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
        """Where a fragment stands now; tensors by reference."""
        return Position(self.states[fragment], self.residuals[fragment], self.chains[fragment].state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `saved_positions` gave.

        Raises:
            CheckpointError: it has other fragments, or its tensors don't match its ledger position, or its
                residuals are those of an earlier version.
        """
        if any(kept and "sent" in kept for kept in state["residuals"]):
            raise CheckpointError(
                "the checkpoint keeps what pseudo-gradients lost apart from the parameters, as earlier "
                "versions did; start anew from its export, or go on with the version that wrote it"
            )
        sizes = [anchor.numel() for anchor in state["anchors"]]
        expected = [fragment.elements for fragment in self.fragments]
        if sizes != expected:
            raise CheckpointError(f"expected fragments of {expected} elements, the checkpoint has {sizes}")
        states = [FragmentState.of(*pair) for pair in zip(state["anchors"], state["momenta"], strict=True)]
        for chain, saved, restored in zip(self.chains, state["chains"], states, strict=True):
            chain.load_state_dict(saved)
            if chain.last is not None and chain.last.state_digest != restored.digest:
                raise CheckpointError(
                    f"fragment {chain.fragment}: the checkpoint's tensors have digest "
                    f"{restored.digest[:12]}, its ledger says {chain.last.state_digest[:12]}"
                )
        self.states = states
        self.residuals = [Residual(**kept) if kept else None for kept in state["residuals"]]


def saved_positions(positions: Sequence[Position]) -> dict[str, Any]:
    """Of all fragments, for a checkpoint: tensors by reference."""
    residuals = [position.residual for position in positions]
    return {
        "anchors": [position.state.anchor for position in positions],
        "momenta": [position.state.momentum for position in positions],
        "residuals": [kept.state_dict() if kept else None for kept in residuals],
        "chains": [position.chain for position in positions],
    }
