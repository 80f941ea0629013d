"""The encoded mean of one outer step, in the pieces in which it came: joining them would copy it all."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from lowcomm.ledger.pieces import Buffer, make_manifest, name_of
from lowcomm.types import Digest


class Update:
    """Immutable bytes in several parts; none of the parts may change any more.

    Attributes:
        size_bytes: of all parts together.
        paced: whether sending it waits for the pace of snapshots; whoever is behind by a few updates,
            or lacks one in a round, is not kept waiting.
    """

    paced = False

    def __init__(self, parts: Sequence[Buffer]) -> None:
        self.parts = tuple(memoryview(part).cast("B") for part in parts if len(part))
        self.size_bytes = sum(len(part) for part in self.parts)

    @cached_property
    def manifest(self) -> bytes:
        """The hashes of its pieces; hashes all bytes at the first call."""
        return make_manifest(self.parts)

    @property
    def digest(self) -> Digest:
        """Its name."""
        return name_of(self.manifest)

    @property
    def whole(self) -> memoryview:
        """All bytes; a copy where it has several parts."""
        return self.parts[0] if len(self.parts) == 1 else memoryview(b"".join(self.parts))

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on; fewer at the end."""
        found = []
        for part in self.parts:
            if offset < len(part) and length > 0:
                taken = part[offset : offset + length]
                found.append(taken)
                length -= len(taken)
            offset = max(0, offset - len(part))
        return b"".join(found)
