"""A snapshot on its way in: what has come stays, in the run folder also over a restart.

Pieces that fit the manifest go into the vectors that will be the state, and into
`incoming/FRAGMENT-DIGEST.state` beside `....manifest`. After a restart the file is read and each piece
compared with the manifest again, so nothing has to be said of what it holds.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import IO

from lowcomm.errors import ProtocolError
from lowcomm.islands.vectors import FP32_BYTES, Vectors, bytes_of
from lowcomm.ledger.pieces import PIECE_BYTES, check_manifest, count_pieces, fits
from lowcomm.ledger.state import FragmentState
from lowcomm.storage.files import write_atomically
from lowcomm.types import Digest

logger = logging.getLogger(__name__)


class Incoming:
    """A fragment's state, as far as it has come; a `Target` of `Fetch`.

    Args:
        elements: of the fragment.
        folder: the run folder; None = in memory only.
        vectors: where the state is made.
    """

    def __init__(
        self, fragment: int, digest: Digest, elements: int, folder: Path | None, vectors: Vectors
    ) -> None:
        self.digest, self.size_bytes = digest, 2 * FP32_BYTES * elements
        self.have: set[int] = set()
        self._manifest: bytes | None = None
        self._anchor, self._momentum = vectors.empty(elements), vectors.empty(elements)
        self._file: IO[bytes] | None = None
        self._path = folder / "incoming" / f"{fragment}-{digest}.state" if folder else None
        if self._path is not None:
            self._open(self._path)

    @property
    def manifest(self) -> bytes | None:
        """See `Target`."""
        return self._manifest

    @manifest.setter
    def manifest(self, manifest: bytes | None) -> None:
        self._manifest = manifest
        if manifest is not None and self._file is not None and self._path is not None:
            try:
                write_atomically(self._path.with_suffix(".manifest"), manifest)
            except OSError as error:
                self._give_up_file(error)

    def _open(self, path: Path) -> None:
        """Take over what an earlier life has fetched."""
        try:
            path.parent.mkdir(exist_ok=True)
            for other in path.parent.glob(f"{path.name.split('-')[0]}-*"):
                if other.stem != path.stem:
                    other.unlink()  # of a state that has been left behind
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
            known = path.with_suffix(".manifest")
            if known.exists():
                self._manifest = check_manifest(known.read_bytes(), self.digest, self.size_bytes)
                self._take_over(self._file.fileno(), self._manifest)
        except ProtocolError:
            self._manifest = None  # damaged: asked for anew
        except OSError as error:
            self._give_up_file(error)

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
        """Copy a piece of `anchor || momentum` to where it belongs."""
        half = self.size_bytes // 2
        first = max(0, min(len(piece), half - start))
        for vector, at, part in (
            (self._anchor, start, piece[:first]),
            (self._momentum, start + first - half, piece[first:]),
        ):
            if part:
                with vector.filling(at // FP32_BYTES, (at + len(part)) // FP32_BYTES) as values:
                    bytes_of(values)[:] = part

    def _give_up_file(self, error: OSError) -> None:
        logger.warning(
            "a snapshot can't be kept on disk (%s); a restart begins it anew", error.strerror or error
        )
        self._file = None

    def finish(self) -> FragmentState:
        """The state; every piece of it fits the digest. What is on disk goes."""
        assert self._manifest is not None
        self.discard()
        return FragmentState(self._anchor, self._momentum, self._manifest)

    def discard(self) -> None:
        """Delete what is on disk."""
        if self._file is not None and self._path is not None:
            self._file.close()
            self._file = None
            self._path.unlink(missing_ok=True)
            self._path.with_suffix(".manifest").unlink(missing_ok=True)


def unfinished(fragment: int, folder: Path | None) -> Digest | None:
    """The state that an earlier life has begun to fetch."""
    found = sorted((folder / "incoming").glob(f"{fragment}-*.manifest")) if folder else []
    name = found[0].stem.partition("-")[2] if found else ""
    return Digest(name) if len(name) == 64 and all(c in "0123456789abcdef" for c in name) else None
