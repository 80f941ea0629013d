"""The contract of all formats of files."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lowcomm.data.formats import METHODS, format_of, reader_for
from lowcomm.data.sources import load_corpus
from lowcomm.errors import DataError

HELD = ["one\ntwo", "\u00e9t\u00e9"]
TABLE = pyarrow.table({"id": [1, 2, 3], "body": [HELD[0], None, HELD[1]]})


def parquet() -> bytes:
    written = io.BytesIO()
    pyarrow.parquet.write_table(TABLE, written, row_group_size=2)
    return written.getvalue()


def arrow(new: Any) -> bytes:
    written = io.BytesIO()
    with new(written, TABLE.schema) as writer:
        writer.write_table(TABLE)
    return written.getvalue()


FILES: dict[str, list[tuple[str, bytes]]] = {
    "text": [("a.txt", b"one\ntwo"), ("b.TXT", "\u00e9t\u00e9".encode())],
    "json_lines": [("a.jsonl", b'{"body": "one\\ntwo"}\n\n{"body": "\\u00e9t\\u00e9", "id": 1}')],
    "parquet": [("a.parquet", parquet())],
    "arrow": [("a.arrow", arrow(pyarrow.ipc.new_stream))],
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


def test_a_file_that_is_cut_is_an_error_with_its_name(tmp_path: Path) -> None:
    for name, content in (("a.parquet", parquet()), ("a.arrow", arrow(pyarrow.ipc.new_file))):
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(
            DataError, match=rf"{name}: expected an? \w+ file, got one that is cut or damaged"
        ):
            documents(tmp_path / name)


@pytest.mark.parametrize("name", ["parquet", "arrow"])
def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path, name: str) -> None:
    file, content = FILES[name][0]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=r"expected the column 'text', got the columns id, body; set data"):
        load_corpus(str(tmp_path))
    with pytest.raises(DataError, match=r"expected text in the column, got int64; set data.text_key"):
        load_corpus(str(tmp_path), "id")


@pytest.mark.parametrize("new", [pyarrow.ipc.new_stream, pyarrow.ipc.new_file], ids=["stream", "file"])
def test_both_kinds_of_arrow_files_are_read(tmp_path: Path, new: Any) -> None:
    (tmp_path / "a.arrow").write_bytes(arrow(new))
    assert documents(tmp_path) == HELD


def test_a_saved_data_set_is_a_source(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"body": HELD})
    rows.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "splits")
    assert documents(tmp_path / "one") == documents(tmp_path / "splits") == HELD


@pytest.mark.parametrize("size", [1, 7, 40, 1_000])
@pytest.mark.parametrize("name", ["json_lines", "parquet"])
def test_parts_in_order_are_the_file(tmp_path: Path, name: str, size: int) -> None:
    path = tmp_path / f"a{format_of(Path(), name).suffixes[0]}"
    texts = [f"{number} \u00e9" for number in range(20)]
    if name == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=3)
    else:
        lines = "".join(f'{{"text": "{text}"}}\n' for text in texts)
        path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    divide = format_of(path).parts
    assert divide is not None
    parts = divide(path, size)
    assert len(parts) > 1 or size == 1_000
    read = [
        document.decode() for part in parts for document in reader_for(path, text_key="text", part=part)(path)
    ]
    assert read == texts


def test_a_bad_line_is_named_by_its_number_in_the_file_in_any_part(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n' * 5 + "oops\n" + '{"text": "one"}\n')
    parts = format_of(path).parts(path, 30)  # type: ignore[misc]
    readers = [reader_for(path, text_key="text", part=part) for part in parts]
    with pytest.raises(DataError, match=r"a\.jsonl:6: expected a JSON object in one line"):
        [list(reader(path)) for reader in readers]
