"""A file to UTF-8: unpacked, and decoded where its first bytes say for sure what it is.

Read are UTF-8, with or without a byte order mark, and UTF-16 and UTF-32 with one; each as it is, or
compressed as gz, bz2, xz or zst. All else is guesswork, and left out with a reason.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowcomm.data.left_out import ARCHIVE, BINARY, DAMAGED, NO_MARK, NO_ZSTD, NOT_UTF8, LeftOutError
from lowcomm.errors import DataError

PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".lzma", ".zst", ".zstd")
PACKED_BYTES = 1 << 16
"""What is read at a time of a file that is unpacked."""
LINE_BYTES = 64 << 20
"""No line is longer; a file without line ends must not fill the memory."""
_UTF8_MARK = codecs.BOM_UTF8
_MARKS = (  # those of UTF-32 first: one begins like UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER_PROGRAMS = {
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
    b"PAR1": "Parquet",
    b"%PDF": "PDF",
    b"ARROW1": "Arrow",
}
_TAR_MARK = slice(257, 262)


def unpacked_suffix(path: Path) -> str:
    """The suffix of what is in a file: `.jsonl` of `a.jsonl.gz`; in lower case."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_text(path: Path) -> bytes:
    """A whole file as UTF-8 without a mark; may be empty.

    Raises:
        LeftOutError: it is no text, or not for sure.
        OSError: it can't be read.
    """
    with opened(path) as stream:
        content = stream.read()
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return _recoded(content, encoding)
    content = content.removeprefix(_UTF8_MARK)
    _check(content, 0, content)
    return content


def checked_lines(path: Path) -> Iterator[bytes]:
    """The lines of a text, each of which is one.

    Raises:
        LeftOutError: it is no text, or not for sure; some of its lines may have come by then.
        OSError: it can't be read.
    """
    start, offset = b"", 0
    try:
        for line in read_lines(path):
            start = start or line[:512]
            _check(line, offset, start)
            offset += len(line)
            yield line
    except UnicodeDecodeError as error:  # of UTF-16 and UTF-32, which are decoded as they are read
        raise LeftOutError(BINARY, f"no {error.encoding.upper()} at {error.start:,}") from error


def _check(content: bytes, offset: int, start: bytes) -> None:
    """Refuse what is no text.

    Args:
        content: what is looked at.
        offset: where it stands in its file.
        start: of the file, which tells what it may be.

    Raises:
        LeftOutError: with why.
    """
    if 0 in content:
        raise _no_text(start, LeftOutError(NO_MARK) if _looks_like_utf16(content) else LeftOutError(BINARY))
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        detail = f"byte 0x{content[error.start]:02x} at {offset + error.start:,}"
        raise _no_text(start, LeftOutError(NOT_UTF8, detail)) from error


def read_lines(path: Path, part: tuple[int, int] | None = None) -> Iterator[bytes]:
    """The lines of a file, one after the other, so that it need not fit into memory.

    They are UTF-8 if the file is any of what `read_text` takes; that they are is for the caller to see.

    Args:
        part: one of those that `line_parts` gives: the lines that begin in it.

    Raises:
        LeftOutError: it can't be unpacked.
        DataError: a line is longer than `LINE_BYTES`.
        OSError: it can't be read.
    """
    with opened(path) as stream:
        start = stream.peek(len(_UTF8_MARK) + 1)
        if (mark := next((mark for mark, _ in _MARKS if start.startswith(mark)), None)) is not None:
            wrapper = io.TextIOWrapper(stream, dict(_MARKS)[mark], newline="\n")
            yield from (line.encode() for line in wrapper)
            return
        left = math.inf if part is None else float(part[1])
        skipped = len(stream.read(len(_UTF8_MARK) if start.startswith(_UTF8_MARK) else 0))
        if part is not None and part[0] > 0:
            stream.seek(part[0] - 1)
            left, skipped = part[1] - part[0] + 1 - len(stream.readline()), 0
        while left > 0 and (line := stream.readline(LINE_BYTES + 1)):
            if len(line) > LINE_BYTES:
                raise DataError(
                    f"{path}: expected lines of at most {LINE_BYTES >> 20} MiB, got a longer one; a "
                    "JSON array in one line becomes JSON lines with jq -c '.[]'"
                )
            left, skipped = left - len(line) - skipped, 0
            yield line


def line_parts(path: Path, size_bytes: int) -> list[tuple[int, int]]:
    """Ranges of a file's bytes, of so many each; none where it can't be read from the middle."""
    with path.open("rb") as file:
        start, end = file.peek(6), file.seek(0, io.SEEK_END)
    if start.startswith((*_PACKED, *dict(_MARKS))):
        return []
    return [(at, min(at + size_bytes, end)) for at in range(0, end, size_bytes)]


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """A file's content, unpacked if its first bytes say how.

    Raises:
        LeftOutError: it can't be unpacked.
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        start = file.peek(6)
        unpack = next((opener for mark, opener in _PACKED.items() if start.startswith(mark)), None)
        if unpack is None:
            yield file
            return
        try:
            with unpack(file) as stream:
                yield stream
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise LeftOutError(DAMAGED, str(error)) from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise LeftOutError(DAMAGED, str(error)) from error


def _zstd(file: io.BufferedReader) -> io.BufferedReader:
    try:
        import zstandard
    except ImportError as error:
        raise LeftOutError(NO_ZSTD) from error
    return io.BufferedReader(_Zstd(file, zstandard.ZstdDecompressor(), zstandard.ZstdError))


class _Zstd(io.RawIOBase):
    """Frame by frame, since zstandard's own reader takes the end of a file that is cut short for its end."""

    def __init__(self, file: io.BufferedReader, library: Any, error: type[Exception]) -> None:
        self._file, self._library, self._error = file, library, error
        self._frame = library.decompressobj()
        self._ready, self._begun = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = (self._frame.unused_data if self._frame.eof else b"") or self._file.read(PACKED_BYTES)
            if self._frame.eof:
                self._frame, self._begun = self._library.decompressobj(), False
            if not packed:
                if self._begun:
                    raise EOFError("it ends within a frame")
                return 0
            try:
                self._ready, self._begun = self._frame.decompress(packed), True
            except self._error as error:
                raise EOFError(str(error)) from error
        part, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


_PACKED: dict[bytes, Callable[[io.BufferedReader], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": _zstd,
}


def _recoded(content: bytes, encoding: str) -> bytes:
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise LeftOutError(BINARY, f"no {encoding.upper()} at {error.start:,}") from error
    if "\0" in text:
        raise LeftOutError(BINARY)
    return text.encode()


def _no_text(content: bytes, otherwise: LeftOutError) -> LeftOutError:
    kind = next((name for mark, name in _OTHER_PROGRAMS.items() if content.startswith(mark)), None)
    if content[_TAR_MARK] == b"ustar":
        kind = "tar"
    return LeftOutError(ARCHIVE, kind) if kind else otherwise


def _looks_like_utf16(content: bytes) -> bool:
    """Whether every other byte is 0, as in western text, for as long as it was looked at."""
    even, odd = content[:512:2], content[1:512:2]
    return len(content) >= 8 and ((all(even) and not any(odd)) or (all(odd) and not any(even)))
