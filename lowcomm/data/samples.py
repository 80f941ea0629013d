"""Samples by number: what a stream of batches is drawn from.

Which samples make a batch, and in which order, is a function of the data and the seed alone, the same on any
machine; so a stream is resumed by a number, and ranks draw in step without a word between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray
from torch import Tensor

from lowcomm.data.order import OrderOfEpoch, permutation, random_below
from lowcomm.errors import DataError

Batch = Any
"""Tensors, or tuples, lists and dicts of them; the first dimension of each is that of the samples."""
DEALT = 64
"""Successive samples of the order that are dealt to one island."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A batch for evaluation, and what is known of it.

    Attributes:
        source: all of it is of this one; empty = sources are not told apart.
        bytes_per_token: of text, on average; NaN = nobody knows.
    """

    batch: Batch
    source: str = ""
    bytes_per_token: float = math.nan


class Samples(Protocol):
    """What one island trains on.

    Attributes:
        name: what errors call it.
        sample_tokens: what one sample counts, where tokens are counted.
        tokens: of an epoch.
        identity: what has to be as it was when a stream goes on, such as a digest and the seed; plain values.
        repeats: whether a batch larger than an epoch may be made of several: where they are cut otherwise.
    """

    name: str
    sample_tokens: int
    tokens: int
    identity: Mapping[str, Any]
    repeats: bool

    def count(self, epoch: int) -> int:
        """How many samples an epoch has; at least one."""
        ...

    def places(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """(stop - start,) the places of those drawn as numbers `start` to `stop - 1` of an epoch.

        Args:
            start, stop: 0 <= start <= stop <= count(epoch).
        """
        ...

    def batch(self, places: NDArray[np.int64]) -> Batch:
        """The samples at these places, on the host."""
        ...


class Windows:
    """Windows of text. In each epoch it is cut, from a random offset on, into windows of context + 1 tokens
    that overlap by one, so that every token is predicted once; a batch is inputs and targets, each (batch,
    context) int64, targets being the inputs one token later.

    Args:
        text: (tokens,) of the island's shard.
        context: tokens in a window.
        seed: of offsets and orders.

    Raises:
        DataError: the text is too short for one window.
    """  # fmt: skip

    repeats = True

    def __init__(
        self, text: NDArray[np.uint8], *, context: int, seed: int, name: str = "the island's shard"
    ) -> None:
        _require_window(text, context, name)
        self.name, self.sample_tokens, self.tokens = name, context, len(text)
        digest = blake3(np.ascontiguousarray(text).data).hexdigest()
        self.identity: Mapping[str, Any] = {"seed": seed, "context": context, "text_digest": digest}
        self._text, self._seed = text, seed
        self.places = OrderOfEpoch(self._order)

    def count(self, epoch: int) -> int:
        return (self.tokens - self._offset(epoch) - 1) // self.sample_tokens

    def batch(self, places: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        return _cut(self._text, places, self.sample_tokens)

    def _offset(self, epoch: int) -> int:
        """Shifting by up to a window makes the cuts fall elsewhere in each epoch."""
        context = self.sample_tokens
        return random_below(min(context, self.tokens - context), "offset", self._seed, epoch)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        order = permutation(self.count(epoch), "windows", self._seed, epoch)
        return self._offset(epoch) + self.sample_tokens * order


def eval_batches(
    text: NDArray[np.uint8],
    *,
    context: int,
    num_windows: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    name: str = "the held-out text",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Fixed windows, evenly spread over the text and not overlapping; always the same ones.

    Args:
        text: (tokens,) that nobody trains on.
        context: tokens in a window.
        num_windows: how many in all; fewer where the text is short.
        batch_size: windows in a batch; the last one may be smaller.
        rank, world_size: ranks share the windows, each takes every `world_size`-th.
        name: what errors call the text.

    Raises:
        DataError: the text is too short for one window; raised before the first batch is drawn.
    """
    _require_window(text, context, name)
    room = (len(text) - 1) // context
    count = min(num_windows, room)
    starts = context * (np.arange(count, dtype=np.int64) * room // count)[rank::world_size]
    return (_cut(text, starts[i : i + batch_size], context) for i in range(0, len(starts), batch_size))


class Rows:
    """Rows of tensors, each row one sample, in a random order in each epoch.

    Args:
        tensors: with equal first dimensions; a batch is a tuple of them.
        places: (rows,) of those that are drawn, of all rows.
        seed: of the orders.
        sample_tokens: what a row counts, where tokens are counted.

    Raises:
        DataError: there are no rows.
    """

    repeats = False

    def __init__(
        self,
        tensors: Sequence[Tensor],
        places: NDArray[np.int64],
        *,
        seed: int,
        sample_tokens: int = 1,
        name: str = "the island's samples",
    ) -> None:
        if not len(places):
            raise DataError(f"{name}: expected at least one sample, got none")
        self.name, self.sample_tokens, self.tokens = name, sample_tokens, len(places) * sample_tokens
        self.identity: Mapping[str, Any] = {"seed": seed, "digest": digest_of(t[places] for t in tensors)}
        self._tensors, self._count = tuple(tensors), len(places)
        self.places = OrderOfEpoch(lambda epoch: places[permutation(len(places), "rows", seed, epoch)])

    def count(self, epoch: int) -> int:
        return self._count

    def batch(self, places: NDArray[np.int64]) -> tuple[Tensor, ...]:
        rows = torch.from_numpy(places)
        return tuple(tensor[rows] for tensor in self._tensors)


class Dealt:
    """An island's part of samples: every so many-th block of successive ones, so that parts of the order stay
    together and nobody has what another has.

    Args:
        part, parts: 0 <= part < parts.

    Raises:
        DataError: there is no such part, or there are fewer samples than parts.
    """  # fmt: skip

    def __init__(self, samples: Samples, part: int, parts: int) -> None:
        count = samples.count(0)
        if not 0 <= part < parts:
            raise DataError(f"data.shard: expected 0 to {parts - 1}, got {part}")
        if count < parts:
            raise DataError(
                f"{samples.name}: expected at least {parts} samples, one for each of shared.data.shards, got "
                f"{count}; lower shared.data.shards, or give more data"
            )
        self._samples, self._part, self._parts = samples, part, parts
        self._block = min(DEALT, max(1, count // (8 * parts)))
        self.name = f"{samples.name}, shard {part}" if parts > 1 else samples.name
        self.sample_tokens, self.repeats = samples.sample_tokens, samples.repeats
        self.tokens = self.count(0) * samples.sample_tokens
        self.identity: Mapping[str, Any] = {**samples.identity, "shard": part, "shards": parts}

    def count(self, epoch: int) -> int:
        rounds, rest = divmod(self._samples.count(epoch), self._block * self._parts)
        return rounds * self._block + min(self._block, max(0, rest - self._part * self._block))

    def places(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        parts = [np.empty(0, dtype=np.int64)]
        while start < stop:
            block, within = divmod(start, self._block)
            size = min(stop - start, self._block - within)
            first = (block * self._parts + self._part) * self._block + within
            parts.append(self._samples.places(epoch, first, first + size))
            start += size
        return np.concatenate(parts)

    def batch(self, places: NDArray[np.int64]) -> Batch:
        return self._samples.batch(places)


def digest_of(tensors: Iterator[Tensor]) -> str:
    """The blake3 hash of types, shapes and bytes."""
    found = blake3()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def map_batch(change: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """The batch with each of its tensors changed."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {name: map_batch(change, part) for name, part in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(map_batch(change, part) for part in batch)
    return batch


def tensors_of(batch: Batch) -> Iterator[Tensor]:
    """All tensors of a batch."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (Mapping, tuple, list)):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from tensors_of(part)


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of the samples of several, in their order."""
    parts = [iter(list(tensors_of(batch))) for batch in batches]
    return map_batch(lambda _: torch.cat([next(part) for part in parts]), batches[0])


def count_samples(batch: Batch) -> int:
    """How many samples a batch has.

    Raises:
        DataError: it has no tensor.
    """
    for tensor in tensors_of(batch):
        return len(tensor)
    raise DataError(f"expected a batch of tensors, got {type(batch).__name__} without one")


def _cut(text: NDArray[np.uint8], starts: NDArray[np.int64], context: int) -> tuple[Tensor, Tensor]:
    windows = text[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    inputs, targets = np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def _require_window(text: NDArray[np.uint8], context: int, name: str) -> None:
    if len(text) <= context:
        raise DataError(
            f"{name}: expected at least {context + 1} bytes of text, one window of shared.model.context = "
            f"{context} and the byte after it, got {len(text)}; give more text, or fewer shards, or a "
            "shorter context"
        )
