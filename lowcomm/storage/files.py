"""Writing files so that a crash or a full disk leaves the old or the new content, never a part."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file, durably; a reader sees the old or the new content."""
    partial = path.with_name(path.name + ".new")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
