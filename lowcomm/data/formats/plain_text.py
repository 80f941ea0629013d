"""A text file as one document; a source that is one large file as several."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lowcomm.data.formats.base import Format, Reader
from lowcomm.data.text import read_text

PIECE_BYTES = 64 * 1024
"""A source that is one plain file is cut into documents of about this size, after a line's end."""


def plain_text(*, alone: bool) -> Reader:
    """See `Reader`."""

    def documents(path: Path) -> Iterator[bytes]:
        content = read_text(path)
        yield from _pieces(content) if alone else (content,)

    return documents


def _pieces(content: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(content):
        end = content.find(b"\n", start + PIECE_BYTES) + 1
        # a short rest stays with the piece before it
        end = end if end and len(content) - end >= PIECE_BYTES // 2 else len(content)
        yield content[start:end]
        start = end


SPEC = Format(name="text", make=plain_text, about="a file is a document; all suffixes that are not below")
