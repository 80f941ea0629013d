"""Chunk files: tokens, and where documents end, written with their hashes and read as memory maps.

What is mapped lies in the page cache once for all ranks of a host. A size that is wrong is always found;
whether bytes are those of the manifest is checked where a chunk arrives from elsewhere, and by `lowcomm data
verify`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from lowcomm.data.corpus.manifest import CHUNKS, Chunk, Vocabulary
from lowcomm.errors import DataError

TOKENS, ENDS = ".bin", ".ends"
END_BYTES = 4
Tokens = NDArray[np.unsignedinteger]
"""(tokens,) little-endian, of 1, 2 or 4 bytes."""


def chunk_file(folder: Path, name: str, suffix: str) -> Path:
    """Where a corpus has the tokens or the ends of a chunk."""
    return folder / CHUNKS / f"{name}{suffix}"


def write_chunk(
    folder: Path, name: str, tokens: Tokens, ends: NDArray[np.integer], *, source: int, vocabulary: Vocabulary
) -> Chunk:
    """Write both files of a chunk into a corpus, each renamed into place when it is whole.

    Args:
        folder: of the corpus.
        tokens: below `vocabulary.size`.
        ends: (documents,) where each ends in `tokens`, ascending, its separator included.
        source: its number in the manifest.
    """
    hashes = {}
    (folder / CHUNKS).mkdir(parents=True, exist_ok=True)
    for suffix, values, kind in (
        (TOKENS, tokens, f"<u{vocabulary.token_bytes}"),
        (ENDS, ends, f"<u{END_BYTES}"),
    ):
        content = np.ascontiguousarray(values, dtype=kind).view(np.uint8).data
        hashes[suffix] = blake3(content).hexdigest()
        path = chunk_file(folder, name, suffix)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # its name must not stand for less
        unfinished.replace(path)
    return Chunk(
        name=name,
        source=source,
        tokens=len(tokens),
        documents=len(ends),
        tokens_blake3=hashes[TOKENS],
        ends_blake3=hashes[ENDS],
    )


def map_tokens(file: BinaryIO, chunk: Chunk, vocabulary: Vocabulary) -> Tokens:
    """(tokens,) of a chunk, which are read when they are looked at.

    Raises:
        DataError: the file is longer or shorter than the manifest says.
    """
    return _map(file, chunk.tokens, f"<u{vocabulary.token_bytes}", f"chunk {chunk.name}")


def map_ends(file: BinaryIO, chunk: Chunk) -> Tokens:
    """(documents,) where each ends in the chunk, its separator included.

    Raises:
        DataError: as `map_tokens`.
    """
    return _map(file, chunk.documents, f"<u{END_BYTES}", f"chunk {chunk.name}")


def _map(file: BinaryIO, count: int, kind: str, name: str) -> Tokens:
    expected, found = count * np.dtype(kind).itemsize, os.fstat(file.fileno()).st_size
    if found != expected:
        raise DataError(
            f"{name}: {file.name}: expected {expected:,} bytes, as the manifest says, got {found:,}; it was "
            "cut or changed: copy it again"
        )
    return np.memmap(file, dtype=kind, mode="r") if count else np.empty(0, dtype=kind)
