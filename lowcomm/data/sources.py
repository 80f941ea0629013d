"""Where the text comes from: Python's own sources, a folder, a file, or a glob.

A document is a text file or a line of a JSON lines file. Documents are ordered by their path
relative to the source, so the order is the same on every machine that holds the same files.
Skipped: hidden files and folders, `__pycache__`, files that are empty or not UTF-8 text.
"""

from __future__ import annotations

import glob
import json
import os
import sysconfig
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from lowcomm.errors import DataError
from lowcomm.types import Digest

STDLIB = "stdlib"
PIECE_BYTES = 64 * 1024
"""A source that is one plain file is cut into documents of about this size, after a line's end."""

_STDLIB_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib-dynload"}
_LINES = (".jsonl", ".ndjson", ".json")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, eq=False, slots=True)
class Corpus:
    """All documents of a source, in one array.

    Attributes:
        source: as it was asked for.
        text: (total bytes,) UTF-8, one document after the other with nothing between.
        stops: (documents,) where each ends in `text`, ascending.
        digest: of the documents' sizes and bytes in order; equal on islands with the same text.
    """

    source: str
    text: NDArray[np.uint8]
    stops: NDArray[np.int64]
    digest: Digest

    def __len__(self) -> int:
        return len(self.stops)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """The bytes of document `index`, 0 <= index < len, as a view."""
        start = self.stops[index - 1] if index else 0
        return self.text[start : self.stops[index]]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(documents,) bytes of each."""
        return np.diff(self.stops, prepend=0)


def load_corpus(source: str, text_key: str = "text") -> Corpus:
    """Read all documents of a source into memory.

    Args:
        source: `stdlib`, or a folder (read recursively), a file, or a glob (`**` crosses folders).
            Files that end in .jsonl, .ndjson or .json hold one JSON object per line.
        text_key: the key of the text in these objects.

    Raises:
        DataError: nothing there, nothing readable, no text in it, or a bad JSON line.
    """
    text = bytearray()
    stops = array("q")
    files = 0
    for path in _files(source):
        files += 1
        for document in _documents(path, text_key, alone=path == Path(source).expanduser()):
            if document:
                text += document
                stops.append(len(text))
    if not stops:
        found = f"{files} files, all empty or not UTF-8 text" if files else "no files"
        raise DataError(f"data.source {source}: expected text, got {found}")
    ends = np.frombuffer(stops, dtype=np.int64)
    hasher = blake3(ends.astype("<i8").tobytes())
    hasher.update(text)
    return Corpus(source, np.frombuffer(text, dtype=np.uint8), ends, Digest(hasher.hexdigest()))


def _files(source: str) -> list[Path]:
    if source == STDLIB:
        return _stdlib_files()
    path = Path(source).expanduser()
    if path.is_dir():
        return _sorted(_walk(path), path)
    if path.is_file():
        return [path]
    if glob.has_magic(str(path)):
        fixed = []
        for part in path.parts[:-1]:
            if glob.has_magic(part):
                break
            fixed.append(part)
        matches = (Path(match) for match in glob.glob(str(path), recursive=True))
        files = _sorted((match for match in matches if match.is_file()), Path(*fixed))
        if files:
            return files
        raise DataError(f"data.source {source}: expected files, but the glob matches none in {Path.cwd()}")
    raise DataError(
        f'data.source {source}: expected "{STDLIB}", a folder, a file or a glob, but nothing is there '
        f"(relative paths start at {Path.cwd()})"
    )


def _stdlib_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    # config-3.x and _sysconfigdata describe how this machine's Python was built, sitecustomize is its owner's
    files = (
        path
        for path in _walk(root, skipped=_STDLIB_SKIPPED)
        if path.suffix == ".py" and not path.name.startswith(("_sysconfigdata", "sitecustomize"))
        if not path.relative_to(root).parts[0].startswith("config-")
    )
    found = _sorted(files, root)
    if not found:
        raise DataError(
            f"data.source {STDLIB}: expected Python's own sources in {root}, got no .py files; "
            "name a folder of text instead"
        )
    return found


def _walk(root: Path, skipped: frozenset[str] | set[str] = frozenset()) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: can't be read: {error.strerror}") from error

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and name != "__pycache__" and name not in skipped
        ]
        # is_file: a named pipe in the folder would block for ever
        yield from (
            path for name in names if not name.startswith(".") and (path := Path(folder, name)).is_file()
        )


def _sorted(paths: Iterator[Path], root: Path) -> list[Path]:
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def _documents(path: Path, text_key: str, *, alone: bool) -> Iterator[bytes]:
    try:
        if path.suffix.lower() in _LINES:
            yield from _json_documents(path, text_key)
            return
        content = path.read_bytes().removeprefix(_BOM)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
    if _is_text(content):
        yield from _pieces(content) if alone else (content,)


def _is_text(content: bytes) -> bool:
    if 0 in content:
        return False
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _pieces(content: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(content):
        end = content.find(b"\n", start + PIECE_BYTES) + 1
        # a short rest stays with the piece before it
        end = end if end and len(content) - end >= PIECE_BYTES // 2 else len(content)
        yield content[start:end]
        start = end


def _json_documents(path: Path, text_key: str) -> Iterator[bytes]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                line = line.removeprefix(_BOM)
            if not line.isspace():
                yield _json_document(line, text_key, f"{path}:{number}")


def _json_document(line: bytes, text_key: str, where: str) -> bytes:
    try:
        record = json.loads(line.rstrip())
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: expected UTF-8 text, got other bytes at offset {error.start}") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: expected a JSON object in one line: {error.msg} (column {error.colno})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected a JSON object in one line: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object in one line, got {type(record).__name__}")
    if text_key not in record:
        names = ", ".join(sorted(record)[:8]) or "none"
        raise DataError(f"{where}: expected the key {text_key!r}, got the keys {names}; set data.text_key")
    text = record[text_key]
    if not isinstance(text, str):
        raise DataError(f"{where}: expected text at {text_key!r}, got {type(text).__name__}")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: half a surrogate pair at character {error.start} is no text") from error
