"""What Parquet and Arrow have in common: text in a column, read a few rows at a time with pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowcomm.data.text import PACKED_SUFFIXES, opened
from lowcomm.errors import DataError

ROWS = 256
"""Rows that are in memory at a time."""


@contextmanager
def column_file(path: Path, what: str) -> Iterator[tuple[Any, Any]]:
    """pyarrow, and a file as it reads one: mapped, or unpacked into memory.

    Raises:
        DataError: pyarrow is missing, or the file is cut or damaged.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(
            f"{path}: expected pyarrow, which reads {what}: pip install 'lowcomm[data]'"
        ) from error
    try:
        if path.suffix.lower() in PACKED_SUFFIXES:
            with opened(path) as stream:
                yield pyarrow, pyarrow.BufferReader(stream.read())
        else:
            with pyarrow.memory_map(str(path)) as mapped:
                yield pyarrow, mapped
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: expected {what}, got one that is cut or damaged: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise DataError(f"{path}: expected {what}, got one that is cut or damaged: {error}") from error


def texts(path: Path, pyarrow: Any, column: Any) -> Iterator[bytes]:
    """The texts of a batch's column, missing ones left out.

    Raises:
        DataError: it has no text.
    """
    if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
        raise DataError(f"{path}: expected text in the column, got {column.type}; set data.text_key")
    column.validate(full=True)
    for text in column.cast(pyarrow.large_binary()).to_pylist():
        if text is not None:
            yield text


def check_column(path: Path, text_key: str, names: list[str]) -> None:
    """Refuse a file without the column.

    Raises:
        DataError: names the columns that it has.
    """
    if text_key not in names:
        raise DataError(
            f"{path}: expected the column {text_key!r}, got the columns {', '.join(names[:8]) or 'none'}; "
            "set data.text_key"
        )
