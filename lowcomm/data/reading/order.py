"""In which order the windows of a corpus are drawn: a function of manifest digest, context, seed and epoch.

    window          `context` tokens and the one after them, at a multiple of `context` from an offset that an
                    epoch draws, within one chunk
    source          of weight w gives w times its windows: whole repetitions, and for the rest a run of its
                    windows that goes on in the next epoch where this one ended
    chunks          in a random order in which each source is evenly spread, in blocks of 16
    windows         of a block are mixed by a `Bijection`

So what is kept is one row per chunk, and successive windows touch 16 chunks, which can be fetched ahead.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowcomm.data.corpus.manifest import Manifest
from lowcomm.data.order import permutation, random_words
from lowcomm.data.reading.bijection import Bijection
from lowcomm.errors import DataError

BLOCK = 16
"""Chunks whose windows are mixed."""
RUN = 1_024
"""Places that are computed at a time."""
WHOLE = 1_000_000
"""Weights count in millionths."""
_Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class _Epoch:
    """Runs of windows within a chunk, in their order.

    Attributes:
        chunks: (runs,) the number of each one's chunk.
        firsts: (runs,) where its first window begins, in tokens of the training part.
        stops: (runs,) windows of it and of all before it.
        blocks: (blocks,) the same at the last run of each block.
    """

    chunks: _Numbers
    firsts: _Numbers
    stops: _Numbers
    blocks: _Numbers


class Order:
    """Places are those of windows' first tokens, all chunks of the training part one after the other.

    Args:
        context: tokens in a window.
        seed: of offsets and orders.

    Attributes:
        starts: (chunks,) the place at which each begins.

    Raises:
        DataError: no chunk is long enough for a window.
    """

    def __init__(self, manifest: Manifest, *, context: int, seed: int) -> None:
        self._context = context
        self._key = (manifest.digest, seed, context)
        self._tokens = np.array([chunk.tokens for chunk in manifest.training], dtype=np.int64)
        self._sources = np.array([chunk.source for chunk in manifest.training], dtype=np.int64)
        self._weights = [round(source.weight * WHOLE) for source in manifest.sources]
        self.starts: _Numbers = np.cumsum(self._tokens) - self._tokens
        if not (self._tokens > context).any():
            longest = int(self._tokens.max(initial=0))
            raise DataError(
                f"the corpus: expected a chunk of at least {context + 1} tokens, one window of "
                f"shared.model.context = {context} and the token after it, got {longest} in the longest; "
                "give more text, or a shorter context"
            )
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)
        self._run = functools.lru_cache(maxsize=4)(self._make_run)
        self._mixed = functools.lru_cache(maxsize=4)(self._make_mixed)

    def count(self, epoch: int) -> int:
        """Windows of an epoch."""
        return int(self._epoch(epoch).stops[-1])

    def places(self, epoch: int, start: int, stop: int) -> _Numbers:
        """See `Samples`."""
        parts = [
            self._run(epoch, run)[max(0, start - run * RUN) : stop - run * RUN]
            for run in range(start // RUN, -(-stop // RUN))
        ]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.int64), *parts])

    def sources(self, epoch: int, places: _Numbers | None = None) -> _Numbers:
        """(sources,) how many windows of each source are at these places; without them those of an epoch."""
        table = self._epoch(epoch)
        if places is None:
            chunks, counts = table.chunks, np.diff(table.stops, prepend=0)
        else:
            chunks, counts = np.searchsorted(self.starts, places, side="right") - 1, np.ones_like(places)
        found: _Numbers = np.zeros(len(self._weights), dtype=np.int64)
        np.add.at(found, self._sources[chunks], counts)
        return found

    def block(self, epoch: int, number: int) -> int:
        """The block of a window by its number in the epoch's order."""
        return int(np.searchsorted(self._epoch(epoch).blocks, number, side="right"))

    def chunks(self, epoch: int, block: int) -> list[int]:
        """The numbers of a block's chunks; of the next epoch's first block after the last one."""
        if block >= len(self._epoch(epoch).blocks):
            epoch, block = epoch + 1, 0
        return self._epoch(epoch).chunks[block * BLOCK : (block + 1) * BLOCK].tolist()  # type: ignore[no-any-return]

    def _make_run(self, epoch: int, run: int) -> _Numbers:
        table = self._epoch(epoch)
        stop = min((run + 1) * RUN, self.count(epoch))
        parts, start = [], run * RUN
        while start < stop:
            block = self.block(epoch, start)
            begin = int(table.blocks[block - 1]) if block else 0
            until = min(stop, int(table.blocks[block]))
            windows = begin + self._mixed(epoch, block)(np.arange(start - begin, until - begin))
            row = np.searchsorted(table.stops, windows, side="right")
            before = np.where(row > 0, table.stops[row - 1], 0)
            parts.append(table.firsts[row] + self._context * (windows - before))
            start = until
        return np.concatenate(parts)

    def _make_mixed(self, epoch: int, block: int) -> Bijection:
        blocks = self._epoch(epoch).blocks
        count = int(blocks[block] - (blocks[block - 1] if block else 0))
        return Bijection(count, *self._key, "windows", epoch, block)

    def _make_epoch(self, epoch: int) -> _Epoch:
        runs = [
            (int(chunk), int(first), int(count))
            for repetition in range(max(self._weights, default=0) // WHOLE + 1)
            for chunk, first, count in self._repetition(epoch, repetition)
        ]
        if not runs:
            raise DataError(
                "the corpus: expected windows to train on, got none: the sources with text have weight 0"
            )
        chunks, firsts, counts = (np.array(column, dtype=np.int64) for column in zip(*runs, strict=True))
        order = self._spread(epoch, self._sources[chunks])
        stops = np.cumsum(counts[order])
        lasts = np.minimum(np.arange(BLOCK, len(runs) + BLOCK, BLOCK), len(runs)) - 1
        return _Epoch(chunks[order], firsts[order], stops, stops[lasts])

    def _repetition(self, epoch: int, repetition: int) -> list[tuple[int, int, int]]:
        """(chunk, place of the first window, windows) of all that are drawn for this time in the epoch."""
        context, tokens = self._context, self._tokens
        # shifting by up to a window makes the cuts fall elsewhere each time
        word = int(random_words(1, *self._key, "offset", epoch, repetition)[0] >> np.uint64(1))
        offsets = word % np.clip(tokens - context, 1, context)
        windows = np.where(tokens > context, (tokens - offsets - 1) // context, 0)
        found = []
        for source, weight in enumerate(self._weights):
            chunks = np.flatnonzero(self._sources == source)
            stops = np.cumsum(windows[chunks])
            total = int(stops[-1]) if len(stops) else 0
            part = min(WHOLE, weight - repetition * WHOLE)
            if part <= 0 or not total:
                continue
            begin = 0 if part == WHOLE else epoch * part * total // WHOLE % total
            end = begin + (part * total + WHOLE // 2) // WHOLE
            for low, high in ((begin, min(end, total)), (0, end - total)):
                befores = stops - windows[chunks]
                first, last = np.maximum(befores, low), np.minimum(stops, high)
                begins = self.starts[chunks] + offsets[chunks] + context * (first - befores)
                some = last > first
                found += list(zip(chunks[some], begins[some], (last - first)[some], strict=True))
        return found

    def _spread(self, epoch: int, sources: _Numbers) -> _Numbers:
        """A random order in which the runs of each source are evenly spread over those of all others."""
        shuffled = permutation(len(sources), *self._key, "chunks", epoch)
        shift = random_words(len(sources), *self._key, "spread", epoch).astype(np.float64) / 2.0**64
        at = np.empty(len(sources))
        for source in np.unique(sources):
            own = shuffled[sources[shuffled] == source]
            at[own] = (np.arange(len(own)) + shift[own]) / len(own)
        return np.argsort(at, kind="stable")
