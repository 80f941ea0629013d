"""Documents of every kind of source, and what is said about those that hold none."""

import json
import os
import re
from pathlib import Path

import pytest

from lowcomm.data.formats.plain_text import PIECE_BYTES
from lowcomm.data.sources import Corpus, load_corpus
from lowcomm.errors import DataError


def write(root: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def documents(corpus: Corpus) -> list[str]:
    return [corpus[index].tobytes().decode() for index in range(len(corpus))]


def refusal(source: Path | str, text_key: str = "text") -> str:
    with pytest.raises(DataError) as caught:
        load_corpus(str(source), text_key)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_stdlib_is_megabytes_of_python() -> None:
    corpus = load_corpus("stdlib")
    assert len(corpus) > 300
    assert corpus.sizes.sum() > 5_000_000
    assert corpus.text.tobytes().count(b"\ndef ") > 1_000


def test_stdlib_leaves_tests_and_installed_packages_out() -> None:
    text = load_corpus("stdlib").text.tobytes()
    assert b"class TestCase(object):" in text  # unittest itself is no test
    assert text.count(b"(unittest.TestCase):") < 20
    assert b"class EditorWindow" not in text  # of idlelib
    assert b"import torch" not in text


def test_folder_in_order_of_relative_paths(tmp_path: Path) -> None:
    write(tmp_path, {"b.txt": "2", "a/z.md": "1", "c/d/e.py": "3", "d.unknown": "4é"})
    assert documents(load_corpus(str(tmp_path))) == ["1", "2", "3", "4é"]


def test_order_and_digest_do_not_depend_on_where_the_folder_is(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {f"{name}.txt": name * 3 for name in "qwertyuiop"}
    here = load_corpus(str(write(tmp_path / "zz" / "here", files)))
    there = load_corpus(str(write(tmp_path / "a", dict(reversed(files.items())))))
    assert documents(here) == documents(there)
    assert here.digest == there.digest


@pytest.mark.parametrize(
    "other",
    [{"a.txt": "ab", "b.txt": "d"}, {"a.txt": "a", "b.txt": "bc"}, {"a.txt": "abc"}],
    ids=["content", "boundary", "number"],
)
def test_digest_tells_corpora_apart(tmp_path: Path, other: dict[str, bytes | str]) -> None:
    mine = load_corpus(str(write(tmp_path / "mine", {"a.txt": "ab", "b.txt": "c"})))
    assert load_corpus(str(write(tmp_path / "other", other))).digest != mine.digest


def test_folder_skips_what_is_no_text(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "a.txt": "text",
            "zero.bin": b"a\0b",
            "latin1.txt": b"caf\xe9",
            "empty.txt": "",
            ".hidden": "hidden",
            ".git/config": "hidden",
            "__pycache__/x.txt": "cache",
        },
    )
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "broken").symlink_to("nowhere")
    assert documents(load_corpus(str(tmp_path))) == ["text"]


def test_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": b"\xef\xbb\xbfa", "b.jsonl": b'\xef\xbb\xbf{"text": "b"}\n'})
    assert documents(load_corpus(str(tmp_path))) == ["a", "b"]


def test_glob_crosses_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"x/b.txt": "2", "x/y/a.txt": "3", "x/c.md": "no", "w.txt": "1"})
    assert documents(load_corpus(str(tmp_path / "**" / "*.txt"))) == ["1", "2", "3"]
    monkeypatch.chdir(tmp_path / "x" / "y")
    assert documents(load_corpus("../*.txt")) == ["2"]


def test_small_file_is_one_document(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "one\ntwo\n"})
    assert documents(load_corpus(str(tmp_path / "a.txt"))) == ["one\ntwo\n"]


def test_large_single_file_is_cut_after_lines(tmp_path: Path) -> None:
    text = "".join(f"{i} line of a long book\n" for i in range(20_000))
    write(tmp_path, {"book.txt": text})
    pieces = documents(load_corpus(str(tmp_path / "book.txt")))
    assert "".join(pieces) == text
    assert len(pieces) == pytest.approx(len(text) / PIECE_BYTES, abs=1)
    assert all(piece.endswith("\n") for piece in pieces)
    assert len(load_corpus(str(tmp_path))) == 1  # files of a folder stay whole


def test_single_file_without_lines_stays_whole(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "x" * 3 * PIECE_BYTES})
    assert len(load_corpus(str(tmp_path / "a.txt"))) == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".ndjson", ".JSONL"])
def test_json_lines(tmp_path: Path, suffix: str) -> None:
    lines = [json.dumps({"id": 1, "body": "a\nb"}), "", json.dumps({"body": "😀"}), json.dumps({"body": ""})]
    write(tmp_path, {f"a{suffix}": "\n".join(lines)})
    assert documents(load_corpus(str(tmp_path / f"a{suffix}"), "body")) == ["a\nb", "😀"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param(b'{"text": "a"', "in one line: Expecting ',' delimiter (column 13)", id="cut"),
        pytest.param(b"hello", "in one line: Expecting value (column 1)", id="plain-text"),
        pytest.param(b'["a"]', "expected a JSON object in one line, got list", id="list"),
        pytest.param(b'{"body": "a", "id": 1}', "expected the key 'text', got the keys body, id", id="key"),
        pytest.param(b"{}", "got the keys none; set data.text_key", id="no-keys"),
        pytest.param(b'{"text": 3}', "expected text at 'text', got int", id="number"),
        pytest.param(
            b'{"text": "caf\xe9"}', "expected UTF-8 text, got other bytes at offset 13", id="latin1"
        ),
        pytest.param(b'{"text": "\\ud800"}', "half a surrogate pair at character 0", id="surrogate"),
        pytest.param(b"[" * 100_000, "expected a JSON object in one line", id="deep"),
    ],
)
def test_bad_json_line_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    message = refusal(path)
    assert message.startswith(f"{path}:3: ")
    assert words in message
    assert re.search("; (set data.text_key|mend)", message)  # what to do


def test_nothing_there(tmp_path: Path) -> None:
    assert "nothing is there" in refusal(tmp_path / "missing")


def test_a_pipe_and_a_link_to_nothing_are_named_as_such(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("gone")
    assert "it is a pipe, socket or device; copy" in refusal(tmp_path / "pipe")
    assert "it is a link to nothing" in refusal(tmp_path / "link")


def test_empty_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"data.source {tmp_path}: expected text, got no files"


def test_folder_of_binaries(tmp_path: Path) -> None:
    write(tmp_path, {"a": b"\0", "b": b"\xff"})
    assert refusal(tmp_path).endswith(
        "expected text, got 2 files, none with text: 1 binary (a), 1 not UTF-8 (b: byte 0xff at 0; "
        "convert with iconv -f ENCODING -t UTF-8)"
    )


def test_binary_file(tmp_path: Path) -> None:
    write(tmp_path, {"a.bin": b"\0\1"})
    assert "none with text: 1 binary (a.bin)" in refusal(tmp_path / "a.bin")


def test_glob_without_match(tmp_path: Path) -> None:
    assert "the glob matches none" in refusal(tmp_path / "*.txt")


def test_unreadable_file() -> None:
    assert refusal("/proc/self/mem") == "/proc/self/mem: can't be read: Input/output error"
