"""Locks, and keys, on file systems that lack something.

What flock(), link() and fstat() do there is put in front of the real ones, since a test can't mount them.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowcomm.errors import StorageError
from lowcomm.exchanges.swarm.identity import Identity, IdentityFile
from lowcomm.locks import Lock, TakenError
from lowcomm.storage.checkpoint import Checkpoints
from lowcomm.storage.run_folder import RunFolder

FLOCK, FSTAT, FSYNC = fcntl.flock, os.fstat, os.fsync


def nfs_flock(descriptor: int, operation: int) -> None:
    """flock(2), "NFS details"."""
    if operation & fcntl.LOCK_EX and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    FLOCK(descriptor, operation)


def refusing(code: int) -> Callable[..., None]:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


def wide_modes(descriptor: int) -> os.stat_result:
    """fstat() of a disk without modes."""
    found = FSTAT(descriptor)
    return os.stat_result((found.st_mode | 0o777, *found[1:]))


def is_open(descriptor: int) -> bool:
    try:
        FSTAT(descriptor)
    except OSError:
        return False
    return True


def use(run: Path) -> tuple[RunFolder, IdentityFile]:
    folder = RunFolder.open(run, run_id="demo", shared_digest="d" * 64, version="1")
    return folder, IdentityFile(run / "identity.key")


def test_on_nfs_run_folder_and_key_are_used_and_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fcntl, "flock", nfs_flock)
    folder, key = use(tmp_path / "run")
    with pytest.raises(StorageError, match="another live process trains"):
        RunFolder.open(tmp_path / "run", run_id="demo", shared_digest="d" * 64, version="1")
    with pytest.raises(StorageError, match="another process uses it"):
        IdentityFile(tmp_path / "run" / "identity.key")
    for held in (folder, key):
        held.close()
    for held in use(tmp_path / "run"):
        held.close()
    assert not caplog.records


@pytest.mark.parametrize(
    "code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EBADF, errno.EIO]
)
def test_without_any_locks_an_island_starts_and_says_so(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(code))
    for held in use(tmp_path / "run"):
        held.close()
    folder, key = (record.getMessage() for record in caplog.records)
    assert os.strerror(code) in folder
    assert "nothing keeps a second process from training here" in folder
    assert "nothing here keeps a second process from using it; exchange.identity" in key


@pytest.mark.parametrize("code", [errno.EWOULDBLOCK, errno.EACCES])
def test_a_lock_of_another_process_is_told_from_no_lock(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(code))
    with pytest.raises(StorageError, match="another live process trains"):
        use(tmp_path / "run")


def test_a_forked_child_holds_no_lock_on(tmp_path: Path) -> None:
    """A worker that loads data may outlive the island that was killed."""
    file = tmp_path / "lock"
    file.touch()
    lock = Lock(file)
    lock_number = lock.descriptor
    go_read, go_write = os.pipe()
    forked_read, forked_write = os.pipe()
    child = os.fork()
    if child == 0:
        let_go = not is_open(lock_number)
        os.dup2(go_read, lock_number)  # another file takes the number of the lock
        lock.close()
        os.write(forked_write, b"x" if let_go and is_open(lock_number) else b"!")
        os.read(go_read, 1)
        os._exit(0)
    try:
        assert os.read(forked_read, 1) == b"x"
        with pytest.raises(TakenError):
            Lock(file)
        lock.close()
        Lock(file).close()
    finally:
        os.write(go_write, b"x")
        os.waitpid(child, 0)
        for end in (go_read, go_write, forked_read, forked_write):
            os.close(end)


@pytest.mark.parametrize("links", [True, False], ids=["links", "no-links"])
def test_on_a_disk_without_modes_an_island_starts_and_says_so(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "fstat", wide_modes)
    monkeypatch.setattr(os, "chmod", refusing(errno.EPERM))
    monkeypatch.setattr(os, "fchmod", refusing(errno.EPERM))
    if not links:
        monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    names = []
    for _ in range(2):
        caplog.clear()
        folder, key = use(tmp_path / "run")
        names.append(key.identity.peer_id)
        folder.close()
        key.close()
        (warning,) = (record.getMessage() for record in caplog.records)
        assert "its disk has no file modes (0777)" in warning
        assert "exchange.identity names a file elsewhere" in warning
    assert names[0] == names[1]
    assert not list((tmp_path / "run").glob(".identity*"))


def test_where_modes_work_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(Identity.generate().to_bytes())
    key.chmod(0o640)
    with pytest.raises(StorageError, match=r"expected mode 0600, got 0640.*exchange\.identity"):
        IdentityFile(key)
    assert [item.name for item in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EBADF, errno.EACCES])
def test_a_disk_that_cannot_sync_folders_takes_checkpoints(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def sync_files_only(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(code, os.strerror(code))
        FSYNC(descriptor)

    monkeypatch.setattr(os, "fsync", sync_files_only)
    caplog.set_level(logging.WARNING)
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, {"counts": {"a": 1}})
    assert checkpoints.load(1) == {"counts": {"a": 1}}
