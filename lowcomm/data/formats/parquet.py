"""Parquet: a row is a document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lowcomm.data.formats.base import Format, Part, Reader
from lowcomm.data.formats.columns import ROWS, check_column, column_file, texts

WHAT = "a Parquet file"


def parquet(*, text_key: str, part: Part | None = None) -> Reader:
    """See `Reader`.

    Args:
        text_key: the column of the text.
        part: row groups of the file.
    """

    def documents(path: Path) -> Iterator[bytes]:
        if path.stat().st_size == 0:
            return
        with column_file(path, WHAT) as (pyarrow, content):
            import pyarrow.parquet as library

            file = library.ParquetFile(content, pre_buffer=False)
            check_column(path, text_key, file.schema_arrow.names)
            groups = range(*part) if part else range(file.num_row_groups)
            for group in groups:
                for batch in file.iter_batches(ROWS, [group], [text_key], use_threads=False):
                    yield from texts(path, pyarrow, batch.column(0))

    return documents


def row_groups(path: Path, size_bytes: int) -> list[Part]:
    """Neighbouring row groups of about so many bytes together, packed as they are."""
    if path.stat().st_size == 0:
        return []
    parts: list[Part] = []
    with column_file(path, WHAT) as (_, content):
        import pyarrow.parquet as library

        about = library.ParquetFile(content).metadata
        first, held = 0, 0
        for group in range(about.num_row_groups):
            held += about.row_group(group).total_byte_size
            if held >= size_bytes or group + 1 == about.num_row_groups:
                parts.append((first, group + 1))
                first, held = group + 1, 0
    return parts


SPEC = Format(
    name="parquet",
    make=parquet,
    about="`.parquet`: a row is a document, its text in the column `data.text_key`",
    suffixes=(".parquet",),
    parts=row_groups,
)
