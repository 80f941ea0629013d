"""Where the files of a corpus are: in a folder, or behind a URL and in a cache."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from blake3 import blake3

from lowcomm.data.corpus.manifest import BYTES, CHUNKS, MANIFEST, Chunk, Manifest
from lowcomm.data.corpus.tokenizer import BESIDE, TOKENIZER
from lowcomm.data.reading.cache import Cache, CachedFiles
from lowcomm.data.reading.order import BLOCK
from lowcomm.data.reading.remote import CutError, open_remote
from lowcomm.errors import DataError

GB = 1_000_000_000
MANIFEST_BYTES = 1 << 30
"""A manifest that is longer is none."""


class Files(Protocol):
    """The files of a corpus."""

    def open(self, chunk: Chunk, suffix: str) -> BinaryIO:
        """A file of a chunk, here and with the bytes of its manifest if it came from elsewhere.

        Raises:
            DataError: there is none, or it can't be had.
            StorageError: there is no room for it.
        """
        ...

    def ahead(self, chunks: Sequence[Chunk]) -> None:
        """What will be needed next, the most urgent first; what was said before no longer counts."""
        ...


class LocalFiles:
    """Those of a folder, as `lowcomm data build` made them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, chunk: Chunk, suffix: str) -> BinaryIO:
        path = self._folder / CHUNKS / f"{chunk.name}{suffix}"
        try:
            return path.open("rb")
        except OSError as error:
            raise DataError(
                f"chunk {chunk.name}: {path}: can't be read: {error.strerror}; copy the whole corpus"
            ) from error

    def ahead(self, chunks: Sequence[Chunk]) -> None:
        """A disk needs none."""


@dataclass(frozen=True)
class Opened:
    """A corpus that can be read."""

    source: str
    manifest: Manifest
    files: Files


def open_corpus(source: str, digest: str, *, cache_gb: float, setting: str = "data.source") -> Opened:
    """The corpus of a manifest.

    Args:
        source: a folder, or any URL that fsspec knows.
        digest: of the manifest, in hex.
        cache_gb: what is kept of a corpus behind a URL, in 10^9 bytes.

    Raises:
        DataError: there is none, or one of another manifest.
        StorageError: there is no room for its chunks.
    """
    remote = "://" in source
    manifest = _read_manifest(source) if remote else Manifest.read(Path(source).expanduser())
    if manifest.digest != digest:
        raise DataError(
            f"shared.data.manifest: expected the corpus of manifest {digest}, got that of manifest "
            f"{manifest.digest} in {setting} = {source}; name its folder or URL, or its digest"
        )
    if not remote:
        return Opened(source, manifest, LocalFiles(Path(source).expanduser()))
    token_bytes = manifest.vocabulary.token_bytes
    sizes = sorted((chunk.tokens * token_bytes for chunk in manifest.chunks), reverse=True)
    needed = sum(sizes[: 2 * BLOCK])
    if cache_gb * GB < needed:
        raise DataError(
            f"data.cache_gb: expected at least {needed / GB:.3g}, room for the {2 * BLOCK} chunks that are "
            f"read and fetched ahead at a time, got {cache_gb:g}"
        )
    cache = Cache(cache_folder(), int(cache_gb * GB), wait=threading.Event().wait)
    return Opened(source, manifest, CachedFiles(open_remote(source), cache, manifest.vocabulary))


def tokenizer_files(corpus: Opened) -> dict[str, bytes]:
    """What lies in a corpus of its tokenizer, by name; nothing where tokens are bytes.

    Raises:
        DataError: it is missing, or is not the one that the manifest names.
    """
    vocabulary = corpus.manifest.vocabulary
    if vocabulary.kind == BYTES:
        return {}
    found = {name: content for name in BESIDE if (content := _read_file(corpus.source, name)) is not None}
    whole = _read_file(corpus.source, TOKENIZER) or b""
    if blake3(whole).hexdigest() != vocabulary.blake3:
        raise DataError(
            f"{corpus.source}/{TOKENIZER}: expected the tokenizer of blake3 {vocabulary.blake3[:16]}, got "
            f"{'another' if whole else 'none'}; copy it there again"
        )
    return {TOKENIZER: whole, **found}


def _read_file(source: str, name: str) -> bytes | None:
    """A small file of a corpus; None if it has none."""
    if "://" not in source:
        path = Path(source).expanduser() / name
        return path.read_bytes() if path.is_file() else None
    try:
        return b"".join(open_remote(source).read(name))
    except DataError:
        return None
    except CutError as error:
        raise DataError(f"data.source {source}: {error}") from error


def cache_folder() -> Path:
    """Where chunks from elsewhere are kept, for all corpora and ranks of this user."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "lowcomm" / "chunks"


def _read_manifest(url: str) -> Manifest:
    content = bytearray()
    try:
        for piece in open_remote(url).read(MANIFEST):
            content += piece
            if len(content) > MANIFEST_BYTES:
                break
    except CutError as error:
        raise DataError(f"data.source {url}: {error}") from error
    return Manifest.decode(bytes(content), f"{url}/{MANIFEST}")
