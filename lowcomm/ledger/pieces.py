"""Names of large values: a hash over the hashes of their pieces.

A value is cut into pieces of `PIECE_BYTES`; its *manifest* is their blake3 hashes, one after the other,
and its name is the hash of the manifest (of a value of one piece, the hash of that piece). So whoever
knows the name and the size can check the manifest, and with it every piece by itself, from whichever
peer it comes: the tree of a file in BitTorrent v2 (BEP 52), with one level.
"""

from __future__ import annotations

from collections.abc import Iterable

import blake3

from lowcomm.errors import ProtocolError
from lowcomm.types import Digest

PIECE_BYTES = 1 << 20
HASH_BYTES = 32
MARK = b"lowcomm manifest"
"""Precedes a hashed manifest, so that no piece can pass for one."""

Buffer = bytes | bytearray | memoryview


def make_manifest(parts: Iterable[Buffer]) -> bytes:
    """The hashes of the pieces of all parts together; at least one."""
    hashes, hasher, filled = [], blake3.blake3(), 0
    for part in parts:
        view = memoryview(part).cast("B")
        while len(view):
            taken = view[: PIECE_BYTES - filled]
            hasher.update(taken)
            filled, view = filled + len(taken), view[len(taken) :]
            if filled == PIECE_BYTES:
                hashes.append(hasher.digest())
                hasher, filled = blake3.blake3(), 0
    if filled or not hashes:
        hashes.append(hasher.digest())
    return b"".join(hashes)


def name_of(manifest: bytes) -> Digest:
    """The name of the value with this manifest."""
    if len(manifest) == HASH_BYTES:
        return Digest(manifest.hex())
    return Digest(blake3.blake3(MARK + manifest).hexdigest())


def count_pieces(size_bytes: int) -> int:
    """Pieces of a value of this size."""
    return max(1, -(-size_bytes // PIECE_BYTES))


def check_manifest(manifest: Buffer, name: Digest, size_bytes: int) -> bytes:
    """A copy of a manifest that came from outside.

    Raises:
        ProtocolError: it is not that of the value `name` of `size_bytes`.
    """
    expected = HASH_BYTES * count_pieces(size_bytes)
    if len(manifest) != expected or name_of(bytes(manifest)) != name:
        raise ProtocolError(
            f"expected the {expected} bytes of hashes that {name[:12]} names, got {len(manifest)} others"
        )
    return bytes(manifest)


def fits(manifest: bytes, index: int, piece: Buffer) -> bool:
    """Whether `piece` is the one at `index`."""
    expected = manifest[HASH_BYTES * index : HASH_BYTES * (index + 1)]
    found: bytes = blake3.blake3(piece).digest()
    return found == expected
