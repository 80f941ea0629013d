"""All text of a source as documents: Python's own sources, a folder, a file, or a glob.

A document is a text file or a line of a JSON lines file. Documents are ordered by their path
relative to the source, so the order is the same on every machine that holds the same files.
What is no text, or not for sure, is left out and named; see `lowcomm.data.files` and `lowcomm.data.text`.
"""

from __future__ import annotations

import json
import logging
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from lowcomm.data.files import STDLIB, find_files
from lowcomm.data.left_out import EMPTY, LeftOutError
from lowcomm.data.text import read_lines, read_text, unpacked_suffix
from lowcomm.errors import DataError
from lowcomm.types import Digest

PIECE_BYTES = 64 * 1024
"""A source that is one plain file is cut into documents of about this size, after a line's end."""

_LINES = (".jsonl", ".ndjson", ".json")

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
            Files that end in .jsonl, .ndjson or .json hold one JSON object per line. All may be
            compressed (.gz, .bz2, .xz, .zst).
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
        if unpacked_suffix(path) in _LINES:
            yield from _json_documents(path, text_key)
            return
        content = read_text(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected text, got other bytes: {error.reason}") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
    yield from _pieces(content) if alone else (content,)


def _pieces(content: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(content):
        end = content.find(b"\n", start + PIECE_BYTES) + 1
        # a short rest stays with the piece before it
        end = end if end and len(content) - end >= PIECE_BYTES // 2 else len(content)
        yield content[start:end]
        start = end


def _json_documents(path: Path, text_key: str) -> Iterator[bytes]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.isspace():
            yield _json_document(line, text_key, f"{path}:{number}")


def _json_document(line: bytes, text_key: str, where: str) -> bytes:
    todo = "; mend or remove the line, or rename or move a file that is no JSON lines"
    try:
        record = json.loads(line.rstrip())
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: expected UTF-8 text, got other bytes at offset {error.start}{todo}"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: expected a JSON object in one line: {error.msg} (column {error.colno}){todo}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected a JSON object in one line: {error}{todo}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object in one line, got {type(record).__name__}{todo}")
    if text_key not in record:
        names = ", ".join(sorted(record)[:8]) or "none"
        raise DataError(f"{where}: expected the key {text_key!r}, got the keys {names}; set data.text_key")
    text = record[text_key]
    if not isinstance(text, str):
        raise DataError(
            f"{where}: expected text at {text_key!r}, got {type(text).__name__}; set data.text_key or "
            "mend the line"
        )
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: half a surrogate pair at character {error.start} is no text{todo}"
        ) from error
