"""The seam of the islands: the only place above which nothing knows how a model is sharded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from lowcomm.islands.vectors import Vector, Vectors
from lowcomm.types import Layout

T = TypeVar("T")


class Parameters(Protocol):
    """The trained parameters of one island, as far as its rounds need them.

    Every method marked *collective* must be called by all ranks of the island at the same inner
    step. Parameters are addressed by their place in `layout`.
    """

    @property
    def world_size(self) -> int: ...

    @property
    def layout(self) -> Layout:
        """The trainable tensors, in order, the same on every island of the run."""
        ...

    def read(self, indices: Sequence[int]) -> Tensor:
        """The tensors at `indices` of the layout, flat and in that order: 1-D fp32 on the host.

        The lead gets them, the other ranks an empty tensor. Collective.
        """
        ...

    def write(self, indices: Sequence[int], values: Tensor | None) -> None:
        """Overwrite them on all ranks with the lead's `values` (others pass None). Collective."""
        ...

    def add(self, indices: Sequence[int], values: Vector | None) -> None:
        """Add the lead's `values` (others pass None) to them on all ranks, piece by piece. Collective."""
        ...

    def broadcast(self, value: T | None) -> T:
        """The lead's value, one that can be pickled, on every rank (others pass None). Collective."""
        ...

    def any_rank(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank. Collective."""
        ...


class Island(Parameters, Protocol):
    """One island: a model, its inner optimizers, and the ranks that train it together."""

    @property
    def rank(self) -> int: ...

    @property
    def is_lead(self) -> bool:
        """True on the one rank that talks to other islands."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def model(self) -> nn.Module: ...

    @property
    def bare_model(self) -> nn.Module:
        """The model without the wrapper that ties the ranks together, for evaluation."""
        ...

    def no_sync(self) -> AbstractContextManager[None]:
        """Inside it backward passes only accumulate: for all micro-steps but the last."""
        ...

    @property
    def casts(self) -> bool:
        """Whether the engine computes in its own low precision, so that no autocast is wanted."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of one micro-step's loss. Collective, but inside `no_sync`."""
        ...

    def update(self, clip_norm: float) -> Tensor:
        """One inner step: clip the gradients' global L2 norm (0 = don't), step, clear. Collective.

        Returns:
            That norm before it was clipped, a scalar; on the device, so that nobody waits for it here.
        """
        ...

    def is_finite(self) -> bool:
        """Whether what this rank holds of the parameters is free of NaN and Inf."""
        ...

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]: ...

    def frozen_digest(self) -> str:
        """What identifies the parameters that are not trained, however they are sharded, on the lead.

        Empty elsewhere, and where there are none. Without buffers, which change by themselves. Collective.
        """
        ...

    def open_vectors(self) -> Vectors | None:
        """On the lead a place for vectors of which each host keeps its part; None elsewhere. Collective.

        What other hosts keep goes when the lead closes it, or dies.

        Raises:
            IslandError: the ranks can't connect.
        """
        ...

    def gather(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """Every rank's `state`, by rank, on the lead; empty elsewhere. Collective."""
        ...

    def state_dict(self, *, frozen: bool = True) -> dict[str, Any]:
        """Model, buffers and inner optimizers, on the lead; loads with `torch.load(weights_only=True)`.

        Collective. What the other ranks get is of no use.

        Args:
            frozen: with the parameters that are not trained.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; what it left out stays as it is. Collective."""
        ...
