"""Windows of a corpus: for training in the order of an epoch, for evaluation the same ones each time."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowcomm.data.corpus.chunks import ENDS, TOKENS, Tokens, map_ends, map_tokens
from lowcomm.data.corpus.manifest import Chunk
from lowcomm.data.reading.files import Opened
from lowcomm.data.reading.order import BLOCK, Order
from lowcomm.data.samples import HeldOut
from lowcomm.errors import DataError

MAPPED = 3 * BLOCK
"""Chunks that are mapped at a time: those of a block, and of its neighbours."""
TextBatch = tuple[Tensor, ...]


class Cutter:
    """Cuts windows out of chunks, which stay mapped as long as they are among the last that were used.

    Args:
        context: tokens in a window.
        apart: whether documents are told apart: a batch has a third part then, the position of each token in
            its document, from 0 on, or in the window where the document began before it.
    """

    def __init__(self, corpus: Opened, *, context: int, apart: bool) -> None:
        self._files, self._vocabulary = corpus.files, corpus.manifest.vocabulary
        self._context, self._apart = context, apart
        self._tokens = functools.lru_cache(maxsize=MAPPED)(self._map_tokens)
        self._ends = functools.lru_cache(maxsize=MAPPED)(self._map_ends)

    def cut(self, chunks: list[Chunk], starts: list[int]) -> TextBatch:
        """Inputs and targets, each (windows, context) int64, targets being the inputs one token later.

        Args:
            chunks: (windows,) which one each is in.
            starts: (windows,) its first token there.

        Raises:
            DataError: a chunk can't be had, or has a token above the vocabulary.
        """
        context = self._context
        windows = np.empty((len(starts), context + 1), dtype=np.int64)
        for row, chunk, start in zip(windows, chunks, starts, strict=True):
            row[:] = self._tokens(chunk)[start : start + context + 1]
        if len(windows) and int(windows.max()) >= self._vocabulary.size:
            largest = windows.max(axis=1)
            raise DataError(
                f"chunk {chunks[int(largest.argmax())].name}: expected tokens below the vocabulary's "
                f"{self._vocabulary.size}, got {largest.max()}; copy the chunk again"
            )
        batch = (torch.from_numpy(windows[:, :-1].copy()), torch.from_numpy(windows[:, 1:].copy()))
        if not self._apart:
            return batch
        positions = np.empty((len(starts), context), dtype=np.int64)
        for row, chunk, start in zip(positions, chunks, starts, strict=True):
            row[:] = np.arange(context)
            ends = self._ends(chunk)
            first, last = np.searchsorted(ends, (start + 1, start + context))
            for begin in ends[first:last].astype(np.int64) - start:
                row[begin:] = np.arange(context - begin)
        return (*batch, torch.from_numpy(positions))

    def _map_tokens(self, chunk: Chunk) -> Tokens:
        with self._files.open(chunk, TOKENS) as file:
            return map_tokens(file, chunk, self._vocabulary)

    def _map_ends(self, chunk: Chunk) -> Tokens:
        with self._files.open(chunk, ENDS) as file:
            return map_ends(file, chunk)


class CorpusWindows:
    """The windows of an epoch, all sources mixed by their weights, as `Samples`.

    Args:
        context: tokens in a window; any, whatever the corpus was built for.
        seed: of offsets and orders.
        apart: see `Cutter`.

    Raises:
        DataError: no chunk is long enough for a window.
    """

    repeats = True

    def __init__(self, corpus: Opened, *, context: int, seed: int, apart: bool = False) -> None:
        manifest = corpus.manifest
        self.name, self.sample_tokens = f"data.source {corpus.source}", context
        self.identity: Mapping[str, Any] = {"manifest": manifest.digest, "seed": seed, "context": context}
        self._chunks, self._files = manifest.training, corpus.files
        self._order = Order(manifest, context=context, seed=seed)
        self._cutter = Cutter(corpus, context=context, apart=apart)
        self._ahead = (-1, -1)
        self.tokens = self.count(0) * context

    def count(self, epoch: int) -> int:
        return self._order.count(epoch)

    def places(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        block = self._order.block(epoch, min(start, self.count(epoch) - 1))
        if (epoch, block) != self._ahead:
            self._ahead = epoch, block
            wanted = [*self._order.chunks(epoch, block), *self._order.chunks(epoch, block + 1)]
            self._files.ahead([self._chunks[number] for number in dict.fromkeys(wanted)])
        return self._order.places(epoch, start, stop)

    def batch(self, places: NDArray[np.int64]) -> TextBatch:
        numbers = np.searchsorted(self._order.starts, places, side="right") - 1
        starts = places - self._order.starts[numbers]
        return self._cutter.cut([self._chunks[number] for number in numbers.tolist()], starts.tolist())


def held_out(
    corpus: Opened, *, context: int, windows: int, batch_size: int, apart: bool = False
) -> Iterator[HeldOut]:
    """Fixed windows of what nobody trains on, source by source, evenly spread and not overlapping.

    Sources have them by their tokens, each with enough text at least one; nothing but them is read.

    Args:
        context: tokens in a window.
        windows: about how many in all; fewer where there is less text.
        batch_size: windows in a batch, all of one source; the last one may be smaller.
    """
    cutter = Cutter(corpus, context=context, apart=apart)
    manifest = corpus.manifest
    rooms = np.array([max(0, chunk.tokens - 1) // context for chunk in manifest.holdout], dtype=np.int64)
    sources = np.array([chunk.source for chunk in manifest.holdout], dtype=np.int64)
    whole = int(rooms.sum())
    for number, source in enumerate(manifest.sources):
        chunks = np.flatnonzero(sources == number)
        stops = np.cumsum(rooms[chunks])
        room = int(stops[-1]) if len(stops) else 0
        count = min(room, max(1, windows * room // whole)) if room else 0
        picked = np.arange(count, dtype=np.int64) * room // max(1, count)
        rows = np.searchsorted(stops, picked, side="right")
        starts = context * (picked - (stops - rooms[chunks])[rows])
        for at in range(0, count, batch_size):
            part = slice(at, at + batch_size)
            yield HeldOut(
                cutter.cut([manifest.holdout[chunks[row]] for row in rows[part]], starts[part].tolist()),
                source=source.name if len(manifest.sources) > 1 else "",
                bytes_per_token=(source.holdout_text_bytes or math.nan) / source.holdout_tokens,
            )
