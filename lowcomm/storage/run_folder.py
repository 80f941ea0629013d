"""The folder of one island's run: claimed by one process, for one run only."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from lowcomm.errors import StorageError
from lowcomm.locks import Lock, TakenError
from lowcomm.storage.files import write_atomically

logger = logging.getLogger(__name__)

MARK = "run.json"
LOCK = "lock"
OURS = frozenset({LOCK, "log.txt", "phase", "identity.key", f"{MARK}.new"})
"""Files that may stand in a folder before the run has claimed it (a launcher writes its log there)."""


class RunFolder:
    """A claimed run folder; use as a context manager, or call `close`."""

    def __init__(self, path: Path, lock: Lock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def open(cls, path: Path, *, run_id: str, shared_digest: str, version: str) -> RunFolder:
        """Create the folder, or re-open it to resume.

        Raises:
            StorageError: it belongs to another run or to other shared settings, holds foreign
                files, is in use by a live process, or can't be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            mark = path / MARK
            foreign = sorted(item.name for item in path.iterdir() if item.name not in OURS)
            if not mark.exists() and foreign:
                raise StorageError(
                    f"{path}: expected a new or empty folder, or one of run {run_id!r}; found "
                    f"{foreign[0]!r} and no {MARK}. Choose another --out"
                )
            lock = lock_folder(path)
            try:
                _claim(path, run_id, shared_digest, version)
            except BaseException:
                lock.close()
                raise
        except OSError as error:
            raise StorageError(f"{path}: the run folder can't be used: {error.strerror or error}") from error
        return cls(path, lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, name: str, text: str) -> None:
        """Replace a text file in the folder, atomically.

        Raises:
            StorageError: it can't be written; the file is as it was.
        """
        try:
            write_atomically(self.path / name, text.encode())
        except OSError as error:
            raise StorageError(
                f"{self.path / name}: the file can't be written: {error.strerror or error}"
            ) from error

    def check_data(self, digest: str) -> None:
        """Compare the text with the one that the run has trained on up to now.

        Raises:
            StorageError: it is another one.
        """
        noted = _facts(self.path / MARK).get("data_digest", digest)
        if noted != digest:
            raise StorageError(
                f"{self.path}: this run has trained on other text (digest {noted[:12]}, now {digest[:12]}): "
                "the documents of data.source have changed, or stdlib is that of another Python; give it the "
                "same ones, or join as a new island with another --out"
            )

    def note_data(self, digest: str) -> None:
        """Keep the run to this text from now on: its training begins."""
        facts = {**_facts(self.path / MARK), "data_digest": digest}
        self.write(MARK, json.dumps(facts, indent=2) + "\n")

    def close(self) -> None:
        """Give the folder up; it can be resumed."""
        if self._lock.descriptor >= 0:
            (self.path / "pid").unlink(missing_ok=True)
            self._lock.close()


def lock_folder(path: Path, way_out: str = ", or choose another --out") -> Lock:
    """Keep others from training in a run folder.

    Raises:
        StorageError: somebody does; it ends with `way_out`.
        OSError: the folder can't be written to.
    """
    (path / LOCK).touch()
    try:
        lock = Lock(path / LOCK)
    except TakenError as error:
        raise StorageError(
            f"{path}: another live process trains in this folder (see {path / 'pid'}); stop it{way_out}"
        ) from error
    if lock.missing:
        logger.warning(
            "%s: its disk gives no locks (%s), so nothing keeps a second process from training here",
            path,
            lock.missing,
        )
    return lock


def _claim(path: Path, run_id: str, shared_digest: str, version: str) -> None:
    mark, facts = path / MARK, {}
    if mark.exists():
        facts = _check_mark(mark, run_id, shared_digest, version)
    facts |= {"run_id": run_id, "shared_digest": shared_digest, "version": version}
    write_atomically(mark, (json.dumps(facts, indent=2) + "\n").encode())
    write_atomically(path / "pid", f"{os.getpid()}\n".encode())


def _check_mark(mark: Path, run_id: str, shared_digest: str, version: str) -> dict[str, str]:
    facts = _facts(mark)
    found_run, found_digest = facts["run_id"], facts["shared_digest"]
    found_version = facts.get("version", "unknown")
    if found_run != run_id:
        raise StorageError(
            f"{mark.parent}: this folder belongs to run {found_run!r}, not to {run_id!r}; choose another "
            "--out"
        )
    if found_digest != shared_digest:
        others = f"; lowcomm {found_version} wrote it, this is {version}" if found_version != version else ""
        raise StorageError(
            f"{mark.parent}: this folder holds run {run_id!r} with other [shared] settings (digest "
            f"{found_digest[:12]}, now {shared_digest[:12]}{others}); compare {mark.parent / 'config.toml'}, "
            "or choose another --out"
        )
    return facts


def _facts(mark: Path) -> dict[str, str]:
    """What the mark says, and run_id and shared_digest are among it."""
    try:
        facts = json.loads(mark.read_text(encoding="utf-8"))
        return {
            **{name: str(value) for name, value in facts.items()},
            "run_id": str(facts["run_id"]),
            "shared_digest": str(facts["shared_digest"]),
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{mark}: expected the mark of a lowcomm run, but it is damaged: {error!r}"
        ) from error
