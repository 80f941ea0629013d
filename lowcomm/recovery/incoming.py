"""A snapshot on its way in: what has come stays, in the run folder also over a restart.

Pieces that fit the manifest go into the vectors that will be the state, and into
`incoming/FRAGMENT-DIGEST.state` beside `....manifest`. After a restart the file is read and each piece
compared with the manifest again, so nothing has to be said of what it holds. Where another state has to be
taken than the one that was begun, the pieces that are equal in both are not fetched again.

All calls read or write what is as large as the state: make them from a worker thread.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lowcomm.errors import ProtocolError
from lowcomm.islands.vectors import FP32_BYTES, Vectors, bytes_of
from lowcomm.ledger.pieces import HASH_BYTES, PIECE_BYTES, check_manifest, count_pieces, fits
from lowcomm.ledger.state import FragmentState
from lowcomm.storage.files import write_atomically
from lowcomm.types import Digest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Earlier:
    """What has come of another state: a piece at a time, None where it can't be read."""

    manifest: bytes
    read: Callable[[int, int], bytes | None]


class Incoming:
    """A fragment's state, as far as it has come; a `Target` of `Fetch`.

    Args:
        like: any state of the fragment: how long it is, and its slots.
        folder: the run folder; None = in memory only.
        vectors: where the state is made.
        before: the one that this one takes the place of, if any.
    """

    def __init__(
        self,
        fragment: int,
        digest: Digest,
        like: FragmentState,
        folder: Path | None,
        vectors: Vectors,
        before: Incoming | None = None,
    ) -> None:
        self.fragment, self.digest, self.size_bytes = fragment, digest, like.size_bytes
        self.have: set[int] = set()
        self.manifest: bytes | None = None
        elements = like.anchor.elements
        self._anchor = vectors.empty(elements)
        self._slots = {name: vectors.empty(elements) for name in like.slots}
        self._file: IO[bytes] | None = None
        self._earlier = before._as_earlier() if before else []
        self._path = folder / "incoming" / f"{fragment}-{digest}.state" if folder else None
        if self._path is not None:
            self._open(self._path)

    def begin(self, manifest: bytes) -> None:
        """See `Target`: pieces of an earlier state that are equal are there from now on."""
        self.manifest = manifest
        if self._file is not None and self._path is not None:
            try:
                write_atomically(self._path.with_suffix(".manifest"), manifest)
            except OSError as error:
                self._give_up_file(error)
        for earlier in self._earlier:
            self._take_equal(earlier, manifest)
        self._leave_others()

    def _take_equal(self, earlier: _Earlier, manifest: bytes) -> None:
        for index in range(min(len(manifest), len(earlier.manifest)) // HASH_BYTES):
            place = slice(HASH_BYTES * index, HASH_BYTES * (index + 1))
            if index in self.have or manifest[place] != earlier.manifest[place]:
                continue
            start = index * PIECE_BYTES
            piece = earlier.read(start, min(PIECE_BYTES, self.size_bytes - start))
            if piece and fits(manifest, index, piece):
                self.write(index, piece)
                self.have.add(index)

    def _as_earlier(self) -> list[_Earlier]:
        if self._file is not None:
            self._file.close()
            self._file = None
            return []  # it is found there, and need not stay in memory
        if self.manifest is None:
            return self._earlier  # nothing of it has come
        came = FragmentState(self._anchor, self._slots, self.manifest)

        def read(offset: int, length: int) -> bytes | None:
            return came.read(offset, length) if offset // PIECE_BYTES in self.have else None

        return [_Earlier(self.manifest, read)]

    def _open(self, path: Path) -> None:
        """Take over what an earlier life has fetched."""
        try:
            path.parent.mkdir(exist_ok=True)
            if not self._earlier:
                self._earlier = [_read_earlier(other) for other in self._others(path) if other.exists()]
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
            known = path.with_suffix(".manifest")
            if known.exists():
                self.manifest = check_manifest(known.read_bytes(), self.digest, self.size_bytes)
                self._take_over(self._file.fileno(), self.manifest)
                self._leave_others()
        except ProtocolError:
            self.manifest = None  # damaged: asked for anew
        except OSError as error:
            self._give_up_file(error)

    def _others(self, path: Path) -> list[Path]:
        """Manifests of other states of this fragment."""
        found = sorted(path.parent.glob(f"{self.fragment}-*.manifest"))
        return [other for other in found if other.stem != path.stem]

    def _leave_others(self) -> None:
        """Delete what is on disk of other states of this fragment."""
        self._earlier = []
        if self._path is None:
            return
        for other in self._path.parent.glob(f"{self.fragment}-*"):
            if other.stem != self._path.stem:
                other.unlink(missing_ok=True)

    def _take_over(self, handle: int, manifest: bytes) -> None:
        if os.fstat(handle).st_size > self.size_bytes:
            return
        for index in range(count_pieces(self.size_bytes)):
            start = index * PIECE_BYTES
            piece = os.pread(handle, min(PIECE_BYTES, self.size_bytes - start), start)
            if piece and fits(manifest, index, piece):
                self._place(start, piece)
                self.have.add(index)

    def write(self, index: int, piece: bytes) -> None:
        """See `Target`."""
        start = index * PIECE_BYTES
        self._place(start, piece)
        if self._file is not None:
            try:
                os.pwrite(self._file.fileno(), piece, start)
            except OSError as error:
                self._give_up_file(error)

    def _place(self, start: int, piece: bytes) -> None:
        """Copy a piece of the anchor and then each slot, as one value, to where it belongs."""
        size, stop = FP32_BYTES * self._anchor.elements, start + len(piece)
        for number, vector in enumerate((self._anchor, *self._slots.values())):
            first, last = max(start, number * size), min(stop, (number + 1) * size)
            if first < last:
                at = first - number * size
                with vector.filling(at // FP32_BYTES, (at + last - first) // FP32_BYTES) as values:
                    bytes_of(values)[:] = piece[first - start : last - start]

    def _give_up_file(self, error: OSError) -> None:
        logger.warning(
            "a snapshot can't be kept on disk (%s); a restart begins it anew", error.strerror or error
        )
        self._file = None

    def finish(self) -> FragmentState:
        """The state; every piece of it fits the digest."""
        assert self.manifest is not None
        return FragmentState(self._anchor, self._slots, self.manifest)

    def discard(self) -> None:
        """Delete what is on disk."""
        if self._file is not None and self._path is not None:
            self._file.close()
            self._file = None
            self._path.unlink(missing_ok=True)
            self._path.with_suffix(".manifest").unlink(missing_ok=True)


def _read_earlier(manifest: Path) -> _Earlier:
    """What an earlier life has fetched of another state; read piece by piece, whatever it holds.

    Raises:
        OSError: it can't be read.
    """
    data = manifest.with_suffix(".state")

    def read(offset: int, length: int) -> bytes | None:
        try:
            with data.open("rb") as file:
                return os.pread(file.fileno(), length, offset)
        except OSError:
            return None

    return _Earlier(manifest.read_bytes(), read)


def unfinished(fragment: int, folder: Path | None) -> Digest | None:
    """The state that an earlier life has begun to fetch."""
    found = sorted((folder / "incoming").glob(f"{fragment}-*.manifest")) if folder else []
    name = found[0].stem.partition("-")[2] if found else ""
    return Digest(name) if len(name) == 64 and all(c in "0123456789abcdef" for c in name) else None
