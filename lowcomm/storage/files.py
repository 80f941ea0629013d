"""Writing files so that a crash or a full disk leaves the old or the new content, never a part."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from lowcomm.errors import StorageError

_NO_SYNC = frozenset(
    {errno.EBADF, errno.EINVAL, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOSYS, errno.EOPNOTSUPP}
)
"""What file systems say that can't sync a folder: CIFS, some FUSE ones, 9p."""


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Replace a file, durably; a reader sees the old or the new content.

    Args:
        parts: of the new content, one after the other.
    """
    partial = path.with_name(path.name + ".new")
    try:
        with partial.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable, where the file system can do that."""
    handle = -1
    try:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        if handle >= 0:
            os.close(handle)


def make_folder(path: Path) -> None:
    """Make a folder and those around it.

    Raises:
        StorageError: it can't be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: the folder can't be made: {io_reason(error)}") from error


def require_temporary_folder() -> None:
    """See that there is a temporary folder: torch's compiler, among others, wants one.

    Raises:
        StorageError: there is none.
    """
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise StorageError(
            "expected a temporary folder that can be written, found none in TMPDIR, /tmp and /var/tmp; set "
            "TMPDIR to a folder that can be, or mount a tmpfs on /tmp (docker run --tmpfs /tmp)"
        ) from error


def io_reason(error: BaseException) -> str:
    """Why writing failed, in a few words: the operating system's reason where there is one.

    Libraries wrap it: torch.save raises a RuntimeError about its archive in place of the OSError.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split()) or type(error).__name__
