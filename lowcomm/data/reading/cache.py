"""Chunks of a corpus elsewhere, kept in a folder within a byte budget; each is checked before it is used.

A file has the name of its hash, so corpora that have chunks in common share them, and all ranks of a host
share the folder: who gets the lock of a chunk fetches it, the others wait and find it. What was not used for
longest goes first; what a reader has mapped stays readable after it has gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from lowcomm.data.corpus.chunks import END_BYTES, ENDS, TOKENS
from lowcomm.data.corpus.manifest import CHUNKS, Chunk, Vocabulary
from lowcomm.data.reading.remote import CutError, Remote
from lowcomm.errors import DataError, StorageError

logger = logging.getLogger(__name__)

TRIES = 8
"""So often a file is asked for; after each time that brought nothing new the wait is twice as long."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
PART = ".part"


class Cache:
    """A folder of files that are named by their hashes.

    Args:
        folder: made if it isn't there.
        budget_bytes: what is kept at most, the file that is asked for apart.
        wait: waits so many seconds before it is tried again.
    """

    def __init__(self, folder: Path, budget_bytes: int, wait: Callable[[float], object]) -> None:
        self._folder, self._budget_bytes, self._wait = folder, budget_bytes, wait
        with self._written():
            folder.mkdir(parents=True, exist_ok=True)

    def open(self, remote: Remote, name: str, digest: str, size: int) -> BinaryIO:
        """A file with these bytes; fetched if it isn't there. Open, it can be read when it has gone, too.

        Raises:
            DataError: it can't be had, or has other bytes each time.
            StorageError: the folder can't be written or is full.
        """
        path = self._folder / digest
        with self._written():
            while True:
                if file := _open(path):
                    os.utime(file.fileno())
                    return file
                with _locked(self._folder / f"{digest}.lock"):
                    if not path.exists():
                        self._make_room(size)
                        self._fetch(remote, name, path, size)

    def _fetch(self, remote: Remote, name: str, path: Path, size: int) -> None:
        part, waits_s, failed = path.with_name(f"{path.name}{PART}"), FIRST_WAIT_S, 0
        while True:
            begun = part.stat().st_size if part.exists() else 0
            reason, after_s = "", 0.0
            try:
                with part.open("ab") as file:
                    for piece in remote.read(name, begun) if begun < size else ():
                        file.write(piece)
                        if file.tell() > size:
                            break
            except CutError as error:
                reason, after_s = str(error), error.after_s
            found = part.stat().st_size
            if not reason and found < size:
                reason = f"{name}: got {found:,} of {size:,} bytes"
            if found >= size:
                if _hash(part) == path.name:
                    part.replace(path)
                    return
                part.unlink()
                reason = f"{name}: other bytes than its manifest says"
                logger.warning("chunk %s came with other bytes than its manifest says; fetched anew", name)
            elif found > begun:
                waits_s, failed = FIRST_WAIT_S, 0
                continue
            failed += 1
            if failed == TRIES:
                raise DataError(f"{reason}, {TRIES} times; look at data.source, then start again to resume")
            logger.info("%s; tried again", reason)
            self._wait(min(LONGEST_WAIT_S, max(after_s, waits_s)))
            waits_s *= 2

    def _make_room(self, size: int) -> None:
        with _locked(self._folder / "lock"):
            files = []
            for path in self._folder.iterdir():
                if not path.suffix:
                    with contextlib.suppress(FileNotFoundError):
                        found = path.stat()
                        files.append((found.st_mtime_ns, found.st_size, path))
            kept = sum(each for _, each, _ in files)
            for _, each, path in sorted(files):
                if kept + size <= self._budget_bytes:
                    break
                path.unlink(missing_ok=True)
                path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
                kept -= each

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self._folder}: chunks can't be kept: {error.strerror}; make room, lower data.cache_gb, or "
                "set XDG_CACHE_HOME to a folder elsewhere"
            ) from error


class CachedFiles:
    """The files of a corpus elsewhere; a thread fetches ahead what was said to be needed."""

    def __init__(self, remote: Remote, cache: Cache, vocabulary: Vocabulary) -> None:
        self._remote, self._cache, self._vocabulary = remote, cache, vocabulary
        self._wanted: deque[Chunk] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def open(self, chunk: Chunk, suffix: str) -> BinaryIO:
        """See `Files`."""
        size, digest = chunk.tokens * self._vocabulary.token_bytes, chunk.tokens_blake3
        if suffix == ENDS:
            size, digest = chunk.documents * END_BYTES, chunk.ends_blake3
        return self._cache.open(self._remote, f"{CHUNKS}/{chunk.name}{suffix}", digest, size)

    def ahead(self, chunks: Sequence[Chunk]) -> None:
        """See `Files`."""
        with self._changed:
            self._wanted = deque(chunks)
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="chunks ahead", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self._wanted) > 0)
                chunk = self._wanted.popleft()
            try:
                self.open(chunk, TOKENS).close()
            except (DataError, StorageError) as error:
                # whoever needs it asks for it again, and fails with the reason if it is still so
                logger.info("chunk %s could not be fetched ahead: %s", chunk.name, error)


def _hash(path: Path) -> str:
    return blake3(max_threads=1).update_mmap(path).hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other thread or process holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is(path, descriptor):
                yield
                return
        finally:
            os.close(descriptor)


def _is(path: Path, descriptor: int) -> bool:
    """Whether it is still the file of this name: another may have made room of it meanwhile."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None
