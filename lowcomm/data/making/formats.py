"""How the files of a source become documents: text of any format of `lowcomm.data.formats`, or tokens.

A document of tokens is held as bytes, too: little-endian, four each, without its separator.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from lowcomm.data.corpus.manifest import Vocabulary
from lowcomm.data.formats import METHODS, format_of, reader_for
from lowcomm.data.formats.base import Part
from lowcomm.errors import DataError

HUB = "hub"
TOKENS = ("uint16", "uint32", "npy")
CHOICES = (*METHODS.names, *TOKENS, HUB)
_SUFFIXES = {".bin": "", ".npy": "npy"}
LARGE_BYTES = 16 << 20
"""A text file that is larger is cut into documents like one that is a source of its own."""
LLM_C = {20240520: 2, 20240801: 4}
"""llm.c's headers are 256 int32: magic number, version, tokens. By the first: the bytes of a token."""
_HEADER_WORDS = 256
READ_TOKENS = 1 << 18
MOST_TOKENS = 1 << 20
"""Tokens without a separator for so long are cut, so that a document fits into memory."""


def is_tokens(path: str, name: str) -> bool:
    """Whether a file holds tokens, by the source's format, or by its suffix."""
    return name in TOKENS if name else Path(path).suffix.lower() in _SUFFIXES


def parts_of(path: Path, name: str, size_bytes: int) -> list[Part]:
    """Parts of a local file of about so many bytes each; none where it is read as a whole."""
    if is_tokens(str(path), name):
        return []
    parts = format_of(path, name).parts
    return parts(path, size_bytes) if parts else []


def read_documents(
    path: Path, name: str, part: Part | None, *, text_key: str, alone: bool, vocabulary: Vocabulary
) -> Iterator[bytes]:
    """The documents of a file.

    Args:
        path: the file.
        name: of its format; empty = by its suffix.
        part: of the file, as `parts_of` gave it.
        text_key: key or column of the text.
        alone: whether it is all of its source.
        vocabulary: of the corpus; what is tokenised already must be in it.

    Raises:
        LeftOutError: it is no such file, or not for sure.
        DataError: something in it is wrong; says where.
        OSError, UnicodeDecodeError: as they come.
    """
    if not is_tokens(str(path), name):
        alone = alone or path.stat().st_size > LARGE_BYTES
        yield from reader_for(path, name, text_key=text_key, alone=alone, part=part)(path)
        return
    held: list[NDArray[np.uint32]] = []
    for tokens in _tokens(path, name or _SUFFIXES[path.suffix.lower()], vocabulary):
        start = 0
        for end in np.flatnonzero(tokens == vocabulary.separator):
            held.append(tokens[start:end])
            yield b"".join(each.tobytes() for each in held)
            held, start = [], int(end) + 1
        held.append(tokens[start:])
        if sum(map(len, held)) >= MOST_TOKENS:
            yield b"".join(each.tobytes() for each in held)
            held = []
    yield b"".join(each.tobytes() for each in held)


def _tokens(path: Path, name: str, vocabulary: Vocabulary) -> Iterator[NDArray[np.uint32]]:
    """The tokens of a file, a few at a time."""
    with path.open("rb") as file:
        kind, count = _array(path, file, name, vocabulary)
        start = file.tell()
        there = path.stat().st_size - start
        count = there // kind.itemsize if count is None else count
        if there != count * kind.itemsize:
            raise DataError(
                f"{path}: expected {count:,} tokens of {kind.itemsize} bytes after a header of {start}, got "
                f"{there:,} bytes; it is cut, or of another format"
            )
        at = 0
        while at < count:
            content = file.read(min(READ_TOKENS, count - at) * kind.itemsize)
            if not content:
                raise DataError(
                    f"{path}: expected {count:,} tokens, got {at:,}; it was cut while it was read"
                )
            found = np.frombuffer(content, kind)
            if (wrong := np.flatnonzero(found >= vocabulary.size)).size:
                raise DataError(
                    f"{path}: expected tokens below {vocabulary.size:,}, as the tokenizer has them, got "
                    f"{found[wrong[0]]:,} at {at + int(wrong[0]):,}; name the tokenizer that made them"
                )
            at += len(found)
            yield found.astype("<u4")


def _array(
    path: Path, file: BinaryIO, name: str, vocabulary: Vocabulary
) -> tuple[np.dtype[np.unsignedinteger[np.typing.NBitBase]], int | None]:
    """What a token is, and how many there are where a header says it; the file stands at the first."""
    if name == "npy":
        try:
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, kind = read(file)
        except ValueError as error:
            raise DataError(f"{path}: expected an array of numpy: {error}") from error
        if len(shape) != 1 or kind not in (np.dtype("<u2"), np.dtype("<u4"), np.dtype("u1")):
            raise DataError(
                f"{path}: expected a one-dimensional array of uint8, uint16 or uint32, little-endian, got "
                f"{kind.name} of shape {shape}"
            )
        return kind, shape[0]
    header = file.read(4 * _HEADER_WORDS)
    words = np.frombuffer(header, "<i4") if len(header) == 4 * _HEADER_WORDS else np.zeros(3, "<i4")
    width = LLM_C.get(int(words[0]))
    asked = {"uint16": 2, "uint32": 4}.get(name)
    if width is not None and asked in (None, width):
        return np.dtype(f"<u{width}"), int(words[2])
    file.seek(0)
    return np.dtype(f"<u{asked or max(2, vocabulary.token_bytes)}"), None
