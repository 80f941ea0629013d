"""Data in memory for tasks of one's own: tensors whose rows are samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from torch import Tensor

from lowcomm.data.order import permutation
from lowcomm.data.samples import Rows, digest_of
from lowcomm.errors import DataError
from lowcomm.types import Json


class RowData:
    """Tensors in memory as the `Data` of a task: some rows held out, the rest dealt into shards.

    Args:
        tensors: with equal first dimensions, a row of each together one sample; a batch is a tuple of them.
        shards: parts, of nearly equal sizes, one for each island.
        holdout_fraction: part of the rows that is kept for evaluation.
        seed: the same seed gives the same division on any machine.
        sample_tokens: see `Facts`.
        source: what errors call the data.

    Raises:
        DataError: the tensors differ in their rows, or there are fewer rows than shards.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        *,
        shards: int,
        holdout_fraction: float,
        seed: int,
        sample_tokens: int = 1,
        source: str = "the data",
    ) -> None:
        counts = sorted({len(tensor) for tensor in tensors})
        if len(counts) != 1:
            raise DataError(f"{source}: expected tensors of equally many rows, got {counts}")
        order = permutation(counts[0], "samples", seed)
        held = round(holdout_fraction * counts[0])
        if counts[0] - held < shards:
            raise DataError(
                f"{source}: expected at least {shards} samples for training, one for each of "
                f"shared.data.shards, got {counts[0] - held} ({counts[0]} in all, {held} held out)"
            )
        self.source, self.num_shards = source, shards
        self.digest = digest_of(iter(tensors))
        self._tensors, self._seed, self._sample_tokens = tuple(tensors), seed, sample_tokens
        self._held = np.sort(order[:held])
        self._shards = [np.sort(order[held + index :: shards]) for index in range(shards)]

    @property
    def facts(self) -> Mapping[str, Json]:
        trained = sum(map(len, self._shards))
        return {
            "samples": trained + len(self._held),
            "all_epoch_tokens": trained * self._sample_tokens,
        }

    def training(self, shard: int) -> Rows:
        if not 0 <= shard < self.num_shards:
            raise DataError(f"data.shard: expected 0 to {self.num_shards - 1}, got {shard}")
        return Rows(
            self._tensors,
            self._shards[shard],
            seed=self._seed,
            sample_tokens=self._sample_tokens,
            name=f"{self.source}, shard {shard}",
        )

    def evaluation(self, samples: int, batch_size: int) -> Iterable[tuple[Tensor, ...]]:
        count = min(samples, len(self._held))
        places = self._held[np.arange(count, dtype=np.int64) * len(self._held) // max(1, count)]
        return (
            tuple(tensor[places[start : start + batch_size]] for tensor in self._tensors)
            for start in range(0, count, batch_size)
        )
