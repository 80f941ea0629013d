"""JSON lines: one object per line, a document each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from lowcomm.data.formats.base import Format, Part, Reader
from lowcomm.data.text import line_parts, read_lines
from lowcomm.errors import DataError


def json_lines(*, text_key: str, part: Part | None = None) -> Reader:
    """See `Reader`.

    Args:
        text_key: the key of the text.
        part: of the file, in bytes; a line is in the part in which it begins.
    """

    def documents(path: Path) -> Iterator[bytes]:
        def place(number: int) -> str:
            before = sum(1 for _ in read_lines(path, (0, part[0]))) if part else 0
            return f"{path}:{before + number}"

        for number, line in enumerate(read_lines(path, part), start=1):
            if not line.isspace():
                try:
                    yield _document(line, text_key)
                except _BadLineError as error:
                    raise DataError(f"{place(number)}: {error}") from error.__cause__

    return documents


class _BadLineError(Exception):
    """What is wrong with a line, without where it is: that costs a look at all lines before its part."""


def _document(line: bytes, text_key: str) -> bytes:
    todo = "; mend or remove the line, or rename or move a file that is no JSON lines"
    try:
        record = json.loads(line.rstrip())
    except UnicodeDecodeError as error:
        raise _BadLineError(f"expected UTF-8 text, got other bytes at offset {error.start}{todo}") from error
    except json.JSONDecodeError as error:
        raise _BadLineError(
            f"expected a JSON object in one line: {error.msg} (column {error.colno}){todo}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise _BadLineError(f"expected a JSON object in one line: {error}{todo}") from error
    if not isinstance(record, dict):
        raise _BadLineError(f"expected a JSON object in one line, got {type(record).__name__}{todo}")
    if text_key not in record:
        names = ", ".join(sorted(record)[:8]) or "none"
        raise _BadLineError(f"expected the key {text_key!r}, got the keys {names}; set data.text_key")
    text = record[text_key]
    if not isinstance(text, str):
        raise _BadLineError(
            f"expected text at {text_key!r}, got {type(text).__name__}; set data.text_key or mend the line"
        )
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _BadLineError(f"half a surrogate pair at character {error.start} is no text{todo}") from error


SPEC = Format(
    name="json_lines",
    make=json_lines,
    about="`.jsonl`, `.ndjson`, `.json`: a line is an object and a document, its text at `data.text_key`",
    suffixes=(".jsonl", ".ndjson", ".json"),
    parts=line_parts,
)
