"""The contract of all formats of files."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from lowcomm.data.formats import METHODS
from lowcomm.data.sources import load_corpus
from lowcomm.errors import DataError

HELD = ["one\ntwo", "\u00e9t\u00e9"]
FILES: dict[str, list[tuple[str, bytes]]] = {
    "text": [("a.txt", b"one\ntwo"), ("b.TXT", "\u00e9t\u00e9".encode())],
    "json_lines": [("a.jsonl", b'{"body": "one\\ntwo"}\n\n{"body": "\\u00e9t\\u00e9", "id": 1}')],
}
"""Files with these documents, the text at `body` where it has a name, by format."""


def write(folder: Path, name: str, pack: bool = False) -> Path:
    for file, content in FILES[name]:
        packed = (f"{file}.gz", gzip.compress(content)) if pack else (file, content)
        (folder / packed[0]).write_bytes(packed[1])
    return folder


def documents(source: Path) -> list[str]:
    corpus = load_corpus(str(source), "body")
    return [corpus[index].tobytes().decode() for index in range(len(corpus))]


@pytest.mark.parametrize("name", METHODS.names)
def test_documents_in_order_packed_or_not(tmp_path: Path, name: str) -> None:
    for pack in (False, True):
        folder = tmp_path / str(pack)
        folder.mkdir()
        assert documents(write(folder, name, pack)) == HELD


@pytest.mark.parametrize("name", METHODS.names)
def test_a_file_without_documents_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, name)
    empty = tmp_path / f"empty{Path(FILES[name][0][0]).suffix}"
    empty.touch()
    assert documents(tmp_path) == HELD
    with pytest.raises(DataError, match=r"none with text: 1 empty \(empty"):
        documents(empty)


@pytest.mark.parametrize("name", METHODS.names)
def test_other_bytes_are_an_error_with_the_file(tmp_path: Path, name: str) -> None:
    bad = tmp_path / f"bad{Path(FILES[name][0][0]).suffix}"
    bad.write_bytes(b"\xff\xfa\x80 {body}\n")
    with pytest.raises(DataError, match=r"bad\."):
        documents(bad)
