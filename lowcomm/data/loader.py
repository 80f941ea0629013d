"""The training batches of one rank: seeded, resumable to the sample. They run on over the end of an epoch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowcomm.data.items import Stream, StreamLoader
from lowcomm.data.rank_stream import RankStream
from lowcomm.data.samples import Batch, Samples
from lowcomm.data.unit_loader import UnitLoader
from lowcomm.errors import DataError

logger = logging.getLogger(__name__)


class Loader(RankStream):
    """The stream of one rank of one island. All ranks draw in step and take disjoint samples.

    Args:
        samples: of the island.
        batch_size: samples per rank and batch.
        rank, world_size: of this process within the island.

    Raises:
        DataError: there are fewer samples than a batch of all ranks has, and they can't be repeated in it.
    """

    def __init__(self, samples: Samples, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(samples.sample_tokens, batch_size, rank, world_size)
        self._samples = samples
        self._enter(epoch=0, position=0)
        if not samples.repeats and self._count < batch_size * world_size:
            raise DataError(
                f"{samples.name}: expected at least {batch_size * world_size} samples, those of one batch of "
                f"all ranks, got {self._count}; lower train.batch_size or shared.data.shards, or give "
                "more data"
            )
        if self._count < batch_size * world_size:
            logger.warning(
                "%s: a batch of all ranks has %d samples, an epoch %d: each has text more than once; "
                "lower train.batch_size or shared.data.shards, or give more data",
                samples.name,
                batch_size * world_size,
                self._count,
            )

    @property
    def epoch_tokens(self) -> int:
        """Tokens of all samples."""
        return self._samples.tokens

    def next_batch(self) -> Batch:
        """The next batch of this rank; tensors on the host."""
        drawn = self._draw(self._batch_size * self._world_size)
        first = self._rank * self._batch_size
        return self._samples.batch(drawn[first : first + self._batch_size])

    def skip(self, tokens: int) -> None:
        """Leave out the next `tokens` tokens of the island's stream, e.g. those credited before a restart.

        Raises:
            DataError: not a whole number of samples.
        """
        samples = self._whole(tokens)
        self._tokens += tokens
        while samples >= self._count - self._position:
            samples -= self._count - self._position
            self._enter(self._epoch + 1, 0)
        self._position += samples

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, and of what it is; the same on all ranks."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "tokens": self._tokens,
            **self._samples.identity,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken; batch and world size may be others.

        Raises:
            DataError: the state is of other samples, or of another order.
        """
        for key, mine in self._samples.identity.items():
            if state.get(key) != mine:
                raise DataError(
                    f"{self._samples.name}: the checkpoint was made with {key} {state.get(key)}, this run "
                    f"has {mine}; resume with the same data and settings, or start in a new run folder"
                )
        self._tokens = int(state["tokens"])
        self._enter(int(state["epoch"]), int(state["position"]))

    def _enter(self, epoch: int, position: int) -> None:
        self._epoch, self._position = epoch, position
        self._count = self._samples.count(epoch)

    def _draw(self, samples: int) -> NDArray[np.int64]:
        parts: list[NDArray[np.int64]] = []
        self._tokens += samples * self._samples.sample_tokens
        while samples:
            stop = min(self._count, self._position + samples)
            part = self._samples.places(self._epoch, self._position, stop)
            parts.append(part)
            samples -= len(part)
            self._position += len(part)
            if self._position == self._count:
                self._enter(self._epoch + 1, 0)
        return np.concatenate(parts)


Batches = Loader | StreamLoader | UnitLoader
"""The stream of one rank."""


def open_loader(samples: Samples | Stream, *, batch_size: int, rank: int = 0, world_size: int = 1) -> Batches:
    """The batches of one rank of an island.

    Raises:
        DataError: see `Loader` and `StreamLoader`.
    """
    made = StreamLoader if isinstance(samples, Stream) else Loader
    return made(samples, batch_size=batch_size, rank=rank, world_size=world_size)  # type: ignore[arg-type]
