"""Arrow's IPC files and streams, such as those of a saved `datasets` folder: a row is a document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lowcomm.data.formats.base import Format, Reader
from lowcomm.data.formats.columns import ROWS, check_column, column_file, texts

_FILE_MARK = b"ARROW1"


def arrow(*, text_key: str) -> Reader:
    """See `Reader`.

    Args:
        text_key: the column of the text.
    """

    def documents(path: Path) -> Iterator[bytes]:
        if path.stat().st_size == 0:
            return
        with column_file(path, "an Arrow file") as (pyarrow, content):
            import pyarrow.ipc as library

            is_file = content.read(len(_FILE_MARK)) == _FILE_MARK
            content.seek(0)
            reader = library.open_file(content) if is_file else library.open_stream(content)
            check_column(path, text_key, reader.schema.names)
            batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
            for batch in batches:
                column = batch.column(reader.schema.names.index(text_key))
                for start in range(0, len(column), ROWS):
                    yield from texts(path, pyarrow, column.slice(start, ROWS))

    return documents


SPEC = Format(
    name="arrow",
    make=arrow,
    about="`.arrow`, as in a saved `datasets` folder: a row is a document, its text in `data.text_key`",
    suffixes=(".arrow",),
)
