"""The encoded mean of one outer step, in the pieces in which it came: joining them would copy it all."""

from __future__ import annotations

from collections.abc import Sequence

Buffer = bytes | bytearray | memoryview


class Update:
    """Immutable bytes in several pieces; none of the pieces may change any more.

    Attributes:
        size_bytes: of all pieces together.
    """

    __slots__ = ("_pieces", "size_bytes")

    def __init__(self, pieces: Sequence[Buffer]) -> None:
        self._pieces = tuple(memoryview(piece).cast("B") for piece in pieces if len(piece))
        self.size_bytes = sum(len(piece) for piece in self._pieces)

    @property
    def pieces(self) -> tuple[memoryview, ...]:
        """The pieces, in order."""
        return self._pieces

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on; fewer at the end."""
        found = []
        for piece in self._pieces:
            if offset < len(piece) and length > 0:
                part = piece[offset : offset + length]
                found.append(part)
                length -= len(part)
            offset = max(0, offset - len(piece))
        return b"".join(found)
