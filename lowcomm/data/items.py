"""Data sets of torch's two kinds, as what batches are drawn from: by number, or one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowcomm.data.order import OrderOfEpoch, permutation
from lowcomm.data.rank_stream import RankStream
from lowcomm.data.samples import Batch, digest_of, tensors_of
from lowcomm.errors import DataError

Collate = Callable[[list[Any]], Batch]
LOOKED_AT = 64
"""Samples of a map-style data set that its digest is made of, evenly spread: it may be too large to read."""


class Items:
    """Samples of a map-style data set (`len(data)`, `data[place]`), in a random order in each epoch.

    Args:
        places: (samples,) of those that are drawn.
        collate: makes a batch of a list of samples.
        seed: of the orders.
        identity: further things that have to be as they were when a stream goes on.

    Raises:
        DataError: there are none.
    """

    repeats = False

    def __init__(
        self,
        data: Any,
        places: NDArray[np.int64],
        *,
        collate: Collate,
        seed: int,
        sample_tokens: int,
        identity: Mapping[str, Any],
        name: str = "the island's samples",
    ) -> None:
        if not len(places):
            raise DataError(f"{name}: expected at least one sample, got none")
        self.name, self.sample_tokens, self.tokens = name, sample_tokens, len(places) * sample_tokens
        self.identity: Mapping[str, Any] = {"seed": seed, "samples": len(places), **identity}
        self._data, self._count, self._collate = data, len(places), collate
        self.places = OrderOfEpoch(lambda epoch: places[permutation(len(places), "items", seed, epoch)])

    def count(self, epoch: int) -> int:
        return self._count

    def batch(self, places: NDArray[np.int64]) -> Batch:
        return collated(self._data, places.tolist(), self._collate)


class Stream:
    """An iterable data set: its samples come as it gives them, each time from the beginning.

    Args:
        data: `iter(data)` begins anew; `data.set_epoch(epoch)` is called before it where there is one.
    """

    def __init__(self, data: Iterable[Any], *, collate: Collate, sample_tokens: int, name: str) -> None:
        self.data, self.collate, self.sample_tokens, self.name = data, collate, sample_tokens, name


class StreamLoader(RankStream):
    """The batches of one rank of an iterable data set; as `Loader`, for what has no numbers.

    Every rank goes through the whole stream and takes its part of each batch, so that ranks need no word
    between them; a resumed stream is gone through up to where it was.

    Raises:
        DataError: the stream is empty.
    """

    def __init__(self, stream: Stream, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(stream.sample_tokens, batch_size, rank, world_size)
        self._stream = stream
        self._enter(epoch=0, position=0)

    @property
    def epoch_tokens(self) -> None:
        """Nobody knows before the stream has ended."""
        return None

    def next_batch(self) -> Batch:
        """The next batch of this rank; tensors on the host."""
        drawn = self._draw(self._batch_size * self._world_size)
        first = self._rank * self._batch_size
        return self._stream.collate(drawn[first : first + self._batch_size])

    def skip(self, tokens: int) -> None:
        """Leave out the next `tokens` tokens of the stream, e.g. those credited before a restart.

        Raises:
            DataError: not a whole number of samples.
        """
        for _ in range(self._whole(tokens)):
            self._draw(1)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands; the same on all ranks."""
        return {"epoch": self._epoch, "position": self._position, "tokens": self._tokens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken, if the stream is what it was.

        Raises:
            DataError: the stream is shorter than that.
        """
        if "position" not in state or "seed" in state:
            raise DataError(f"{self._stream.name}: the checkpoint was made with a data set of another kind")
        self._enter(int(state["epoch"]), int(state["position"]))
        self._tokens = int(state["tokens"])

    def _enter(self, epoch: int, position: int) -> None:
        stream = self._stream
        set_epoch = getattr(stream.data, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)
        self._samples: Iterator[Any] = iter(stream.data)
        passed = sum(1 for _ in itertools.islice(self._samples, position))
        if passed < position:
            raise DataError(
                f"{stream.name}: expected at least {position:,} samples in epoch {epoch}, trained on "
                f"before the restart, got {passed:,}; give it the stream that it had"
            )
        self._epoch, self._position = epoch, position

    def _draw(self, count: int) -> list[Any]:
        drawn: list[Any] = []
        while len(drawn) < count:
            part = list(itertools.islice(self._samples, count - len(drawn)))
            drawn += part
            self._position += len(part)
            if len(drawn) < count:
                if not self._position:
                    raise DataError(f"{self._stream.name}: expected samples, got a stream without one")
                self._enter(self._epoch + 1, 0)
        self._tokens += count * self._stream.sample_tokens
        return drawn


def collated(data: Any, places: Sequence[int], collate: Collate) -> Batch:
    """The samples at these places as a batch."""
    return collate([data[place] for place in places])


def sampled_digest(data: Any, collate: Collate) -> str:
    """A hash of how many samples there are, and of some of them where they are the same each time.

    Samples that are drawn at random when they are asked for (augmentation) are left out, and so is what
    is no tensor.
    """
    count = len(data)
    places = sorted({count * index // LOOKED_AT for index in range(LOOKED_AT)} if count else ())

    def seen() -> str:
        return digest_of(
            tensor for place in places for tensor in tensors_of(collated(data, [place], collate))
        )

    first = seen()
    return f"{count}:{first if first == seen() else 'random'}"
