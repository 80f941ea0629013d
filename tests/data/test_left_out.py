"""What is in a source and not in its text is said, counted and named; what can be read for sure is read."""

import bz2
import gzip
import io
import logging
import lzma
import os
import socket
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from lowcomm.data.sources import Corpus, load_corpus
from lowcomm.errors import DataError

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def folder(root: Path, **files: bytes) -> Path:
    path = root / "corpus"
    path.mkdir(exist_ok=True)
    (path / "a.txt").write_bytes(b"plain\n")
    for name, content in files.items():
        (path / name.replace("__", ".")).write_bytes(content)
    return path


def documents(corpus: Corpus) -> list[str]:
    return [corpus[index].tobytes().decode() for index in range(len(corpus))]


def load(source: Path, caplog: pytest.LogCaptureFixture) -> tuple[list[str], str]:
    """The documents, and the warning about what is left out."""
    caplog.clear()
    corpus = load_corpus(str(source))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == (corpus.left_out > 0)
    return documents(corpus), "".join(warnings)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "text")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"", "1 empty (b.txt)", id="empty"),
        pytest.param(b"\xef\xbb\xbf", "1 empty (b.txt)", id="mark-alone"),
        pytest.param("Straße".encode("latin-1"), "1 not UTF-8 (b.txt: byte 0xdf at 4; convert", id="latin-1"),
        pytest.param(b"x" * 50_000 + b"\xff" + b"x" * 50_000, "byte 0xff at 50,000", id="one-bad-byte"),
        pytest.param("cut é".encode()[:-1], "byte 0xc3 at 4", id="cut-in-a-character"),
        pytest.param(b"\x89PNG\r\n\x1a\n\0\0", "1 binary (b.txt)", id="binary"),
        pytest.param("wörd".encode("utf-16-le") * 9, "UTF-16 without a byte order mark", id="utf-16-le"),
        pytest.param("word".encode("utf-16-be") * 9, "UTF-16 without a byte order mark", id="utf-16-be"),
        pytest.param(b"\xff\xfe\x00\xd8", "1 binary (b.txt: no UTF-16 at ", id="utf-16-broken"),
        pytest.param("a\0b".encode("utf-16"), "1 binary (b.txt)", id="utf-16-nul"),
        pytest.param(zipped(), "1 of other formats (b.txt: zip; unpack", id="zip"),
        pytest.param(tarred(), "1 of other formats (b.txt: tar; unpack", id="tar"),
        pytest.param(gzip.compress(tarred()), "1 of other formats (b.txt: tar; unpack", id="tar.gz"),
        pytest.param(gzip.compress(b"caf\xe9"), "1 not UTF-8 (b.txt: byte 0xe9 at 3", id="latin-1-gz"),
        *(
            pytest.param(
                pack(os.urandom(9_999))[:-99], "1 compressed, and damaged or cut short", id=f"cut{name}"
            )
            for name, pack in PACK.items()
        ),
    ],
)
def test_what_is_left_out_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, said: str
) -> None:
    found, warning = load(folder(tmp_path, b__txt=content), caplog)
    assert found == ["plain\n"]
    assert ": left out of the text: 1 " in warning
    assert said in warning
    with pytest.raises(DataError, match="none with text"):
        load_corpus(str(tmp_path / "corpus" / "b.txt"))


@pytest.mark.parametrize("suffix", PACK)
def test_compressed_text_and_lines_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    pack = PACK[suffix]
    path = folder(tmp_path)
    (path / f"b.txt{suffix}").write_bytes(pack("wörd\n".encode() * 50_000))
    (path / f"c.jsonl{suffix}").write_bytes(pack(b'{"text": "one"}\n\n{"text": "two"}') + pack(b"\n"))
    (path / f"D.JSONL{suffix.upper()}").write_bytes(pack(b'\xef\xbb\xbf{"text": "marked"}'))
    assert load(path, caplog) == (["marked", "plain\n", "wörd\n" * 50_000, "one", "two"], "")


def test_a_compressed_single_file_is_cut_like_a_plain_one(tmp_path: Path) -> None:
    text = b"".join(b"%d line of a long book\n" % number for number in range(20_000))
    (tmp_path / "book.txt").write_bytes(text)
    (tmp_path / "book.txt.gz").write_bytes(gzip.compress(text))
    plain, packed = (load_corpus(str(tmp_path / name)) for name in ("book.txt", "book.txt.gz"))
    assert len(plain) > 1
    assert plain.digest == packed.digest


def test_lines_of_a_damaged_file_are_all_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = b"".join(b'{"text": "%d"}\n' % number for number in range(50_000))
    found, warning = load(folder(tmp_path, b__jsonl__gz=gzip.compress(lines)[:-20_000]), caplog)
    assert found == ["plain\n"]
    assert "damaged or cut short (b.jsonl.gz" in warning


def test_zstd_without_its_library_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    found, warning = load(folder(tmp_path, b__zst=PACK[".zst"](b"text")), caplog)
    assert found == ["plain\n"]
    assert "1 compressed with zstd (b.zst; pip install zstandard, or unpack with zstd -d)" in warning


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_text_with_a_byte_order_mark_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, encoding: str
) -> None:
    files = {
        "b__txt": "wörd 😀\n".encode(encoding),
        "c__jsonl": '{"text": "é"}\n{"text": "f"}\n'.encode(encoding),
    }
    assert load(folder(tmp_path, **files), caplog) == (["plain\n", "wörd 😀\n", "é", "f"], "")


def test_big_endian_marks_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {
        "b__txt": b"\xfe\xff" + "wörd".encode("utf-16-be"),
        "c__txt": b"\0\0\xfe\xff" + "wörd".encode("utf-32-be"),
    }
    assert load(folder(tmp_path, **files), caplog) == (["plain\n", "wörd", "wörd"], "")


def test_thousands_are_counted_in_one_line_and_listed_with_v(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder(tmp_path)
    for number in range(1_200):
        (path / f"{number:04d}.txt").write_bytes(b"\xff" if number % 2 else b"")
    found, warning = load(path, caplog)
    assert found == ["plain\n"]
    assert "left out of the text: 600 empty (0000.txt, 0002.txt, 0004.txt and 597 more), 600 not" in warning
    assert len(warning) < 600
    with caplog.at_level("INFO", "lowcomm"):
        load(path, caplog)
    assert sum("left out: 1" in record.getMessage() for record in caplog.records) == 200


def test_what_is_no_file_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder(tmp_path)
    os.mkfifo(path / "pipe.txt")
    (path / "gone.txt").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path / "socket"))
        _, warning = load(path, caplog)
    assert "1 broken links (gone.txt)" in warning
    assert "2 pipes, sockets or devices (" in warning


def test_linked_folders_are_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, other = folder(tmp_path), tmp_path / "other disk"
    (other / "deep").mkdir(parents=True)
    (other / "deep" / "b.txt").write_text("linked\n")
    (path / "more").symlink_to(other, target_is_directory=True)
    assert load(path, caplog) == (["plain\n", "linked\n"], "")
    (path / "again").symlink_to(other / "deep", target_is_directory=True)
    (path / "back").symlink_to(path, target_is_directory=True)
    (path / "up").symlink_to(tmp_path, target_is_directory=True)
    (other / "deep" / "round").symlink_to(other, target_is_directory=True)
    found, warning = load(path, caplog)
    assert sorted(found) == ["linked\n", "plain\n"]
    assert "links to folders that hold them or are read already" in warning
    assert all(name in warning for name in ("4 links", "back", "up"))


def test_a_glob_follows_links_without_end_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder(tmp_path)
    (path / "back").symlink_to(path, target_is_directory=True)
    found, warning = load(path / "**" / "*.txt", caplog)
    assert found == ["plain\n"]
    assert "links to folders that hold them" in warning


@pytest.mark.parametrize("name", ["[v2] set", "[a-z]", "what?", "*"])
def test_a_glob_in_a_folder_whose_name_is_a_pattern(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "deep [1]").mkdir(parents=True)
    (tmp_path / name / "a.txt").write_text("a")
    (tmp_path / name / "deep [1]" / "b.txt").write_text("b")
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "other.txt").write_text("no")
    assert documents(load_corpus(str(tmp_path / name / "*.txt"))) == ["a"]
    assert documents(load_corpus(str(tmp_path / name / "**" / "*.txt"))) == ["a", "b"]
    assert documents(load_corpus(str(tmp_path / name / "*" / "*.txt"))) == ["b"]


def test_brackets_after_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x" / "[v2] set").mkdir(parents=True)
    (tmp_path / "x" / "[v2] set" / "a.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    assert documents(load_corpus("*/[v2] set/*.txt")) == ["a"]
    assert documents(load_corpus("x/[[]v2] set/[ab].txt")) == ["a"]
    (tmp_path / "[x]").mkdir()
    (tmp_path / "x").rename(tmp_path / "[x]" / "y")
    assert documents(load_corpus("[x]/*/[v2] set/*.txt")) == ["a"]


def test_names_that_are_no_text_leave_the_warning_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder(tmp_path)
    (path / "two\nlines.txt").write_bytes(b"\xff")
    (path / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"")
    _, warning = load(path, caplog)
    assert "\n" not in warning
    assert "two\\nlines.txt" in warning
    assert "caf\\udce9.txt" in warning


def test_folders_that_a_glob_matches_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder(tmp_path)
    (path / "more").mkdir()
    (path / "more" / "b.txt").write_text("b")
    found, warning = load(path / "*", caplog)
    assert found == ["plain\n"]
    assert "1 folders that the glob matches (more; end it with /** to read what is in them)" in warning
    assert load(path / "**", caplog) == (["plain\n", "b"], "")


def test_stdlib_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    load_corpus("stdlib")
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
