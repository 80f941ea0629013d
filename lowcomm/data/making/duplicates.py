"""The second stage: which documents have a key that one before them has, whatever their number.

A key is a document's hash, or one of its MinHash bands (Broder 1997, doi:10.1109/SEQUEN.1997.666900). Keys
are dealt by their first bits into files on the disk, each of which fits into memory and is sorted there. A
document that shares a key with one before it goes; so of equal ones the first in the order of sources stays,
and of those that are alike each goes that is like one before it (datatrove keeps one of each connected group,
which it finds in memory).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowcomm.data.making.work import whole_file

SORTED_BYTES = 64 << 20
"""Of keys that are sorted in memory at a time, by all processes together."""
BATCH_ROWS = 1 << 19
ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("at", "<u8")])
"""A key, and the number of its document in the order of all of them."""


@dataclass(frozen=True, kw_only=True)
class DuplicateJob:
    """The keys of one kind, of all documents.

    Attributes:
        files: with keys of 16 bytes, in order.
        result: a bit per document: 1 = a document before it has its key; little-endian bits.
        sorted_bytes: that are in memory at a time.
    """

    files: Sequence[Path]
    result: Path
    sorted_bytes: int = SORTED_BYTES


def find_later(job: DuplicateJob) -> None:
    """Write which documents have a key that one before them has."""
    count = sum(path.stat().st_size for path in job.files) // 16
    later = np.zeros((count + 7) // 8, np.uint8)
    buckets = 1 << max(0, (count * ROW.itemsize - 1) // job.sorted_bytes).bit_length()
    if buckets == 1:
        _mark(np.concatenate([np.zeros(0, ROW), *_batches(job.files)]), later)
    else:
        folder = job.result.with_name(f".{job.result.name}.dealt.{os.getpid()}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for batch in _batches(job.files):
            bucket = (batch["high"] >> np.uint64(64 - buckets.bit_length() + 1)).astype(np.int64)
            order = np.argsort(bucket, kind="stable")
            stops = np.searchsorted(bucket[order], np.arange(buckets + 1))
            for number in range(buckets):
                with (folder / str(number)).open("ab") as file:
                    batch[order[stops[number] : stops[number + 1]]].tofile(file)
        for number in range(buckets):
            _mark(np.fromfile(folder / str(number), ROW), later)
        shutil.rmtree(folder)
    with whole_file(job.result) as file:
        later.tofile(file)


def read_bits(path: Path, start: int, count: int) -> NDArray[np.bool_]:
    """(count,) which of the documents from `start` on have a key that one before them has."""
    first, last = start // 8, (start + count + 7) // 8
    found = np.fromfile(path, np.uint8, count=last - first, offset=first)
    return np.unpackbits(found, bitorder="little")[start - 8 * first :][:count].astype(bool)


def _batches(files: Sequence[Path]) -> Iterator[NDArray[np.void]]:
    """Keys with their documents' numbers, some items together."""
    held: list[NDArray[np.void]] = []
    at = rows = 0
    for path in files:
        for start in range(0, path.stat().st_size, 16 * BATCH_ROWS):
            keys = np.fromfile(path, "<u8", count=2 * BATCH_ROWS, offset=start).reshape(-1, 2)
            batch = np.empty(len(keys), ROW)
            batch["high"], batch["low"] = keys[:, 0], keys[:, 1]
            batch["at"] = np.arange(at, at + len(keys))
            held.append(batch)
            at, rows = at + len(keys), rows + len(keys)
            if rows >= BATCH_ROWS:
                yield np.concatenate(held)
                held, rows = [], 0
    if held:
        yield np.concatenate(held)


def _mark(rows: NDArray[np.void], later: NDArray[np.uint8]) -> None:
    """Set the bits of those that come after an equal one; rows are in the order of documents."""
    order = np.lexsort((rows["low"], rows["high"]))  # stable, so the first stays the first
    same = rows["high"][order[1:]] == rows["high"][order[:-1]]
    same &= rows["low"][order[1:]] == rows["low"][order[:-1]]
    found = rows["at"][order[1:][same]]
    np.bitwise_or.at(later, found >> np.uint64(3), np.uint8(1) << (found & np.uint64(7)).astype(np.uint8))
