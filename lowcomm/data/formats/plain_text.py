"""A text file as one document; a source that is one large file as several."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lowcomm.data.formats.base import Format, Reader
from lowcomm.data.text import checked_lines, read_text

PIECE_BYTES = 64 * 1024
"""A source that is one plain file is cut into documents of about this size, after a line's end."""


def plain_text(*, alone: bool) -> Reader:
    """See `Reader`."""

    def documents(path: Path) -> Iterator[bytes]:
        if alone:
            yield from _pieces(checked_lines(path))
        else:
            yield read_text(path)

    return documents


def _pieces(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Whole lines, of at least so many bytes together; a short rest stays with the piece before it."""
    held, piece = b"", bytearray()
    for line in lines:
        piece += line
        if len(piece) > PIECE_BYTES:
            if held:
                yield held
            held = bytes(piece)
            piece.clear()
    if held and len(piece) >= PIECE_BYTES // 2:
        yield held
        held = b""
    yield held + piece


SPEC = Format(name="text", make=plain_text, about="a file is a document; all suffixes that are not below")
