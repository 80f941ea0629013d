"""metrics.jsonl: one JSON object per line, appended over all sessions of a run."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lowcomm.errors import StorageError
from lowcomm.lines import LineFile
from lowcomm.metrics.base import Record, SinkNoticeError
from lowcomm.types import Json


class JsonLinesSink:
    """Appends each record as a line that is on its way to the disk when `log` returns.

    A resumed run goes on in the same file; a line that a killed process left half written is
    closed first, so that it can't swallow the next one. NaN and infinities, which JSON doesn't
    know, are written as the strings "nan", "inf" and "-inf". What a full disk refuses is kept in
    memory and written when there is room again; both are told once, by a `SinkNoticeError`.

    Args:
        path: the file; its folder must exist.

    Raises:
        StorageError: the file can't be opened, or (from `close`) lines could not be written to the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines, self._waits = LineFile(path, torn="close"), False
        try:
            path.open("ab").close()
        except OSError as error:
            raise _storage_error(path, error) from error

    def log(self, record: Record) -> None:
        line = json.dumps({key: _plain(value) for key, value in record.items()}, allow_nan=False)
        try:
            self._lines.append(line)
        except OSError as error:
            if not self._waits:
                self._waits = True
                raise SinkNoticeError(
                    f"{_storage_error(self.path, error)}; its lines are kept in memory"
                ) from error
        else:
            if self._waits:
                self._waits = False
                lost = f", but {self._lines.lost} lines are lost" if self._lines.lost else ""
                raise SinkNoticeError(f"{self.path} is written again{lost}")

    def close(self) -> None:
        try:
            self._lines.flush()
        except OSError as error:
            raise StorageError(
                f"{_storage_error(self.path, error)}; {self._lines.waiting} lines are lost"
            ) from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a metrics.jsonl; what a killed process left half written is passed over.

    Raises:
        StorageError: the file can't be read.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:
                    continue
                if isinstance(line, dict) and isinstance(line.get("kind"), str):
                    yield line
    except OSError as error:
        raise StorageError(f"{path}: can't be read: {error.strerror}") from error


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
        return StorageError(f"the disk is full: {path} can't take another line; free some space")
    return StorageError(f"can't write {path}: {error.strerror or error}")
