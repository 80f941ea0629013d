"""Whether a corpus on the disk is what its manifest says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from lowcomm.data.corpus.chunks import END_BYTES, ENDS, TOKENS, chunk_file
from lowcomm.data.corpus.manifest import BYTES, Manifest
from lowcomm.data.corpus.tokenizer import TOKENIZER


def wrong_files(folder: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(chunk's name or file, what is wrong with it) of each that differs.

    Args:
        folder: of the corpus.
        manifest: as it is there.
    """
    vocabulary = manifest.vocabulary
    if vocabulary.kind != BYTES:
        yield from _compare(folder / TOKENIZER, TOKENIZER, None, vocabulary.blake3)
    for chunk in manifest.chunks:
        for suffix, size_bytes, expected in (
            (TOKENS, chunk.tokens * vocabulary.token_bytes, chunk.tokens_blake3),
            (ENDS, chunk.documents * END_BYTES, chunk.ends_blake3),
        ):
            path = chunk_file(folder, chunk.name, suffix)
            yield from _compare(path, f"chunk {chunk.name}", size_bytes, expected)


def _compare(path: Path, name: str, size_bytes: int | None, expected: str) -> Iterator[tuple[str, str]]:
    try:
        found = path.stat().st_size
        if size_bytes is not None and found != size_bytes:
            yield name, f"{path.name}: expected {size_bytes:,} bytes, got {found:,}"
        elif (digest := blake3().update_mmap(path).hexdigest()) != expected:
            yield name, f"{path.name}: expected bytes with blake3 {expected[:16]}, got {digest[:16]}"
    except OSError as error:
        yield name, f"{path.name}: can't be read: {error.strerror}"
