"""metrics.jsonl: one JSON object per line, appended over all sessions of a run."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path

from lowcomm.errors import StorageError
from lowcomm.metrics.base import Record
from lowcomm.types import Json


class JsonLinesSink:
    """Appends each record as a line that is on its way to the disk when `log` returns.

    A resumed run goes on in the same file; a line that a killed process left half written is
    closed first, so that it can't swallow the next one. NaN and infinities, which JSON doesn't
    know, are written as the strings "nan", "inf" and "-inf".

    Args:
        path: the file; its folder must exist.

    Raises:
        StorageError: the file can't be opened, or (from `log`) the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            torn = _ends_in_mid_line(path)
            self._file = path.open("a", encoding="utf-8", buffering=1)
            if torn:
                self._file.write("\n")
        except OSError as error:
            raise _storage_error(path, error) from error

    def log(self, record: Record) -> None:
        line = json.dumps({key: _plain(value) for key, value in record.items()}, allow_nan=False)
        try:
            self._file.write(line + "\n")
        except OSError as error:
            raise _storage_error(self.path, error) from error

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise _storage_error(self.path, error) from error


def _ends_in_mid_line(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"


def _plain(value: Json) -> Json:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _storage_error(path: Path, error: OSError) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"the disk is full: {path} can't take another line; free some space and resume")
    return StorageError(f"can't write {path}: {error.strerror or error}")
