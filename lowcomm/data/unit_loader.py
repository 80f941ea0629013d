"""The training batches of one rank where islands lease samples: whatever is leased next, each sample once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lowcomm.data.rank_stream import RankStream
from lowcomm.data.samples import Batch, Samples
from lowcomm.errors import DataError
from lowcomm.spans import Spans, flat, joined, parse_spans

Lease = Callable[[int, Spans | None], Spans]
"""`OuterLoop.lease`."""


class Ordered(Protocol):
    """Samples in an order, see `Samples`."""

    def count(self, epoch: int) -> int: ...

    def places(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]: ...


class Numbering:
    """Samples of all epochs, numbered one after the other."""

    def __init__(self, samples: Ordered) -> None:
        self._samples, self._begins = samples, [0]

    def place(self, number: int) -> tuple[int, int]:
        """The epoch of a sample, and its number in it."""
        while number >= self._begins[-1]:
            self._begins.append(self._begins[-1] + self._samples.count(len(self._begins) - 1))
        epoch = bisect_right(self._begins, number) - 1
        return epoch, number - self._begins[epoch]

    def begin(self, epoch: int) -> int:
        """The number of an epoch's first sample."""
        while len(self._begins) <= epoch:
            self._begins.append(self._begins[-1] + self._samples.count(len(self._begins) - 1))
        return self._begins[epoch]

    def places(self, first: int, stop: int) -> NDArray[np.int64]:
        """(stop - first,) see `Samples.places`."""
        parts = [np.empty(0, dtype=np.int64)]
        while first < stop:
            epoch, within = self.place(first)
            count = min(stop - first, self.begin(epoch + 1) - first)
            parts.append(self._samples.places(epoch, within, within + count))
            first += count
        return np.concatenate(parts)


class UnitLoader(RankStream):
    """The stream of one rank of one island. All ranks draw in step and take disjoint samples.

    Args:
        samples: of the whole run.
        lease: gives more of them; collective in the island.
        batch_size: samples per rank and batch.
        rank, world_size: of this process within the island.

    Raises:
        DataError: there is no such rank.
    """

    def __init__(
        self, samples: Samples, lease: Lease, *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(samples.sample_tokens, batch_size, rank, world_size)
        self._samples, self._lease = samples, lease
        self._numbering = Numbering(samples)
        self._ahead: Spans = ()
        self._trained: list[tuple[int, int]] = []

    @property
    def epoch_tokens(self) -> int:
        """Tokens of all samples."""
        return self._samples.tokens

    def next_batch(self) -> Batch:
        """The next batch of this rank; tensors on the host."""
        begin = self._rank * self._batch_size
        wanted = self._batch_size * self._world_size
        parts, at = [np.empty(0, dtype=np.int64)], 0
        for first, stop in self._draw(wanted):
            low, high = max(first, first + begin - at), min(stop, first + begin + self._batch_size - at)
            if low < high:
                parts.append(self._numbering.places(low, high))
            at += stop - first
        return self._samples.batch(np.concatenate(parts))

    def _draw(self, count: int) -> list[tuple[int, int]]:
        """The next so many samples, in the order in which they were leased."""
        drawn: list[tuple[int, int]] = []
        self._tokens += count * self._sample_tokens
        while count:
            if not self._ahead:
                self._ahead = self._lease(count, None)
            (first, stop), *rest = self._ahead
            end = min(stop, first + count)
            drawn.append((first, end))
            count -= end - first
            self._ahead = ((end, stop), *rest) if end < stop else tuple(rest)
        self._trained += drawn
        self._epoch = self._numbering.place(drawn[-1][0])[0]
        return drawn

    def take_trained(self) -> Spans:
        """What was drawn since the last call."""
        trained, self._trained = joined(self._trained), []
        return trained

    def state_dict(self) -> dict[str, Any]:
        """What is leased and not drawn yet, and of what it is; the same on all ranks."""
        return {"ahead": flat(self._ahead), "tokens": self._tokens, **self._samples.identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what was leased when `state_dict` was taken, as far as nobody else has it by now.

        Raises:
            DataError: the state is of other samples, or of fixed shards.
        """
        for key, mine in {**self._samples.identity, "ahead": state.get("ahead", "missing")}.items():
            if state.get(key) != mine:
                raise DataError(
                    f"{self._samples.name}: the checkpoint was made with {key} {state.get(key)}, this run "
                    f"has {mine}; resume with the same data and settings, or start in a new run folder"
                )
        self._tokens = int(state["tokens"])
        ahead = parse_spans("the checkpoint's samples", state["ahead"], len(state["ahead"]))
        self._ahead = self._lease(1, ahead) if ahead else ()
