"""Who may decide the first outer step, kept in the run folder: who starts again decides with the same.

A fragment that has committed nothing yet has no entry that names them, and who knows may be out of reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lowcomm.errors import StorageError
from lowcomm.storage.files import write_atomically
from lowcomm.types import PeerId

FILE = "founders"


def kept_founders(folder: Path | None) -> tuple[PeerId, ...]:
    """Those that an earlier process of this island was told; empty for none.

    Raises:
        StorageError: they can't be read.
    """
    try:
        return tuple(map(PeerId, (folder / FILE).read_text(encoding="utf-8").split())) if folder else ()
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{folder}/{FILE}: can't be read: {error}; remove it to found anew") from error


def keep_founders(folder: Path | None, founders: Sequence[PeerId]) -> None:
    """Write them down; they are on the disk when this returns.

    Raises:
        StorageError: the disk doesn't take them.
    """
    if folder is None or kept_founders(folder) == tuple(founders):
        return
    try:
        write_atomically(folder / FILE, "".join(f"{peer}\n" for peer in founders).encode())
    except OSError as error:
        raise StorageError(f"{folder}/{FILE}: can't be written: {error.strerror or error}") from error
