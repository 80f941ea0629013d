"""All text of a source as documents: Python's own sources, a folder, a file, or a glob.

A document is what a file's format says (`lowcomm.data.formats`). Documents are ordered by their path
relative to the source, so the order is the same on every machine that holds the same files.
What is no text, or not for sure, is left out and named; see `lowcomm.data.files` and `lowcomm.data.text`.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from lowcomm.data.files import STDLIB, find_files
from lowcomm.data.formats import reader_for
from lowcomm.data.left_out import EMPTY, LeftOutError
from lowcomm.errors import DataError
from lowcomm.types import Digest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, slots=True)
class Corpus:
    """All documents of a source, in one array.

    Attributes:
        source: as it was asked for.
        text: (total bytes,) UTF-8, one document after the other with nothing between.
        stops: (documents,) where each ends in `text`, ascending.
        digest: of the documents' sizes and bytes in order; equal on islands with the same text.
        left_out: how many files of the source are not in it; of stdlib none count.
    """

    source: str
    text: NDArray[np.uint8]
    stops: NDArray[np.int64]
    digest: Digest
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.stops)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """The bytes of document `index`, 0 <= index < len, as a view."""
        start = self.stops[index - 1] if index else 0
        return self.text[start : self.stops[index]]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(documents,) bytes of each."""
        return np.diff(self.stops, prepend=0)


def load_corpus(source: str, text_key: str = "text", *, say: bool = True) -> Corpus:
    """Read all documents of a source into memory; log a warning about what is left out.

    Args:
        source: `stdlib`, or a folder (read recursively), a file, or a glob (`**` crosses folders).
            What a file's suffix means is said in `lowcomm.data.formats`. All may be compressed (.gz,
            .bz2, .xz, .zst).
        text_key: the key of the text in these objects.
        say: whether to log it; one rank of an island is enough.

    Raises:
        DataError: nothing there, nothing readable, no text in it, or a bad JSON line.
    """
    text = bytearray()
    stops = array("q")
    files, left_out = find_files(source)
    for path in files:
        before = len(text), len(stops)
        try:
            for document in _documents(path, text_key, alone=path == Path(source).expanduser()):
                if document:
                    text += document
                    stops.append(len(text))
        except LeftOutError as error:
            del text[before[0] :], stops[before[1] :]
            left_out.add(path, error.reason, error.detail)
        else:
            if len(stops) == before[1]:
                left_out.add(path, EMPTY)
    if not stops:
        found = f"{len(files)} files, none with text" if files else "no files"
        raise DataError(
            f"data.source {source}: expected text, got {found}" + (f": {left_out}" if left_out else "")
        )
    # of Python's own sources those are left out on every machine, and nobody has to do anything about it
    matters = source != STDLIB
    if say:
        logger.info("data.source %s: %d documents, %d bytes", source, len(stops), len(text))
        left_out.tell(source, logging.WARNING if matters else logging.INFO)
    ends = np.frombuffer(stops, dtype=np.int64)
    hasher = blake3(ends.astype("<i8").tobytes())
    hasher.update(text)
    digest = Digest(hasher.hexdigest())
    return Corpus(source, np.frombuffer(text, dtype=np.uint8), ends, digest, len(left_out) if matters else 0)


def _documents(path: Path, text_key: str, *, alone: bool) -> Iterator[bytes]:
    try:
        yield from reader_for(path, text_key=text_key, alone=alone)(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected text, got other bytes: {error.reason}") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
