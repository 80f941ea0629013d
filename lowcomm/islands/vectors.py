"""Vectors that an island keeps beside its model: the outer state, fragment by fragment.

A vector is filled once, range by range, and then never changed, so whoever refers to one holds one
consistent version; what nobody refers to any more goes. Where it lies is its own business: here, in
this rank's memory; of an island of several hosts, a part on each (`lowcomm.islands.sharded`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from torch import Tensor

from lowcomm.islands.recycled import RecycledMemory

FP32_BYTES = 4
SPAN_ELEMENTS = 1 << 18
"""What is taken at a time of a vector that need not be whole: 1 MiB."""


class Vector(Protocol):
    """1-D fp32 numbers that don't change. May be read from any thread."""

    @property
    def elements(self) -> int: ...

    def load(self, start: int = 0, stop: int | None = None) -> Tensor:
        """The numbers from `start` to `stop` on this host; not to be changed, it may be the vector itself.

        Raises:
            IslandError: the rank that keeps them is gone.
        """
        ...


class Blank(Vector, Protocol):
    """A vector that is being filled; what was not filled is undefined."""

    def filling(self, start: int, stop: int) -> AbstractContextManager[Tensor]:
        """What is in the tensor at the end is what the vector holds from `start` to `stop`.

        Ranges that don't overlap may be filled at the same time.

        Raises:
            IslandError: at the end, if the rank that is to keep them is gone.
        """
        ...


class Vectors(Protocol):
    """Where an island's vectors are made."""

    def hold(self, values: Tensor) -> Blank:
        """A vector of these 1-D fp32 values, which the caller gives away."""
        ...

    def empty(self, elements: int) -> Blank:
        """A vector to be filled."""
        ...

    def keep(self, vectors: int) -> None:
        """So many come and go with each round, so the memory of so many is worth keeping."""
        ...

    def tidy(self) -> None:
        """An inner step has passed; memory that was only kept to be used again may go."""
        ...

    def close(self) -> None:
        """Let go of what other hosts keep; their vectors can't be read any more. Idempotent."""
        ...


class HostVector:
    """A vector in this rank's memory, without a copy."""

    def __init__(self, values: Tensor) -> None:
        self._values = values

    @property
    def elements(self) -> int:
        return self._values.numel()

    def load(self, start: int = 0, stop: int | None = None) -> Tensor:
        """See `Vector`; a view."""
        return self._values if (start, stop) == (0, None) else self._values[start:stop]

    @contextmanager
    def filling(self, start: int, stop: int) -> Iterator[Tensor]:
        """See `Blank`; a view."""
        yield self._values[start:stop]


class HostVectors:
    """All on this rank.

    Args:
        memory: where new ones lie.
    """

    def __init__(self, memory: RecycledMemory | None = None) -> None:
        self._memory = memory or RecycledMemory()

    def hold(self, values: Tensor) -> HostVector:
        """By reference."""
        return HostVector(values)

    def empty(self, elements: int) -> HostVector:
        """See `Vectors`."""
        return HostVector(self._memory.empty(elements))

    def keep(self, vectors: int) -> None:
        """See `Vectors`."""
        self._memory.keep(vectors)

    def tidy(self) -> None:
        """See `Vectors`."""
        self._memory.tidy()

    def close(self) -> None:
        """Nothing is anywhere else."""


class Difference:
    """One vector less another, computed when it is asked for."""

    def __init__(self, minuend: Vector, subtrahend: Vector) -> None:
        self._minuend, self._subtrahend = minuend, subtrahend

    @property
    def elements(self) -> int:
        return self._minuend.elements

    def load(self, start: int = 0, stop: int | None = None) -> Tensor:
        """See `Vector`."""
        return self._minuend.load(start, stop) - self._subtrahend.load(start, stop)


def spans(elements: int, most: int = SPAN_ELEMENTS) -> Iterator[tuple[int, int]]:
    """Ranges of at most `most` elements, in order, that cover a vector."""
    for start in range(0, elements, most):
        yield start, min(start + most, elements)


def bytes_of(tensor: Tensor) -> memoryview:
    """The little-endian bytes of a contiguous host tensor, without a copy."""
    return memoryview(tensor.numpy().data).cast("B")
