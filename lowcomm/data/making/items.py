"""The items of a build: what one process reads in one go, so that it is done as a whole or not at all.

Which items there are depends on the sources alone: an item is a part of a large file, or some small files in
a row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowcomm.data.corpus.manifest import Vocabulary
from lowcomm.data.files import find_files
from lowcomm.data.formats.base import Part
from lowcomm.data.left_out import DAMAGED, NO_ZSTD, LeftOut, LeftOutError
from lowcomm.data.making.formats import HUB, is_tokens, parts_of, read_documents
from lowcomm.data.making.remote import fetch, hub_documents, hub_parts, is_remote, list_files
from lowcomm.data.making.spec import SourceSpec
from lowcomm.errors import DataError

LEAST_BYTES, MOST_BYTES = 2 << 20, 64 << 20
"""Of an item: small enough that processes end together, and not so small that there are millions."""
ITEMS = 512
"""Of a source, between these."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A file or a part of one.

    Attributes:
        name: path or URL.
        size_bytes: of the file; -1 = not known.
        stamp: changes when the file does.
        part: of it; None = all.
        alone: whether it is all of its source.
    """

    name: str
    size_bytes: int
    stamp: int = 0
    part: Part | None = None
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """Pieces of one source.

    Attributes:
        source: its number.
    """

    source: int
    pieces: tuple[Piece, ...]


def items_of(number: int, source: SourceSpec, item_bytes: int = 0) -> tuple[list[Item], LeftOut]:
    """The items of a source, in order, and which of its files are none.

    Args:
        number: of the source.
        source: as specified.
        item_bytes: about so many has each; 0 = as many as give a good number of items.

    Raises:
        DataError: nothing is there, or it can't be read.
    """
    left_out = LeftOut(Path())
    if source.format == HUB:
        parts = hub_parts(source)
        pieces = [Piece(source.url, -1, part=(part, parts)) for part in range(parts)]
        return [Item(number, (piece,)) for piece in pieces], left_out
    if is_remote(source.url):
        files = list_files(source.url)
        pieces = [Piece(url, size, alone=len(files) == 1) for url, size in files]
        return [Item(number, (piece,)) for piece in pieces], left_out
    with told(source):
        url = source.url.removeprefix("file://")
        paths, left_out = find_files(url)
        alone = paths == [Path(url).expanduser()]
        try:
            found = list(_grouped(paths, source, item_bytes, alone))
        except OSError as error:
            raise DataError(f"{error.filename}: can't be read: {error.strerror}") from error
    return [Item(number, pieces) for pieces in found], left_out


def _grouped(
    paths: Sequence[Path], source: SourceSpec, item_bytes: int, alone: bool
) -> Iterator[tuple[Piece, ...]]:
    found = [path.stat() for path in paths]
    total = sum(about.st_size for about in found)
    item_bytes = item_bytes or min(MOST_BYTES, max(LEAST_BYTES, total // ITEMS))
    held: list[Piece] = []
    for path, about in zip(paths, found, strict=True):
        size, stamp = about.st_size, about.st_mtime_ns
        parts = parts_of(path, source.format, item_bytes) if size > item_bytes else []
        if held and (parts or sum(piece.size_bytes for piece in held) + size > item_bytes):
            yield tuple(held)
            held = []
        if len(parts) > 1:
            yield from ((Piece(str(path), size, stamp, part, alone),) for part in parts)
        else:
            held.append(Piece(str(path), size, stamp, None, alone))
    if held:
        yield tuple(held)


def piece_documents(
    piece: Piece, source: SourceSpec, vocabulary: Vocabulary, fetched: Path
) -> Iterator[bytes]:
    """The documents of a piece.

    Args:
        fetched: where a file that is not on this machine goes meanwhile, without its suffixes.

    Raises:
        LeftOutError: it is no text, or not for sure.
        DataError: it can't be read, or something in it is wrong.
    """
    if source.format == HUB:
        assert piece.part is not None
        yield from hub_documents(source, *piece.part)
        return
    path = Path(piece.name)
    if is_remote(piece.name):
        suffixes = "".join(Path(piece.name.partition("?")[0]).suffixes[-2:])
        path = fetched.with_name(f".{fetched.name}.{os.getpid()}{suffixes}")
        fetch(piece.name, piece.size_bytes, path)
    try:
        with told(source, str(path), piece.name):
            yield from read_documents(
                path,
                source.format,
                piece.part,
                text_key=source.text_key,
                alone=piece.alone,
                vocabulary=vocabulary,
            )
    except UnicodeDecodeError as error:
        raise DataError(f"{piece.name}: expected text, got other bytes: {error.reason}") from error
    except OSError as error:
        raise DataError(f"{piece.name}: can't be read: {error.strerror}") from error
    except LeftOutError as error:
        if error.reason in (DAMAGED, NO_ZSTD):  # a part of the data, which must not be missed in silence
            raise DataError(
                f"{piece.name}: is {error.reason.words} ({error.detail}); {error.reason.advice}"
            ) from error
        raise
    finally:
        if path != Path(piece.name):
            path.unlink(missing_ok=True)


class told:  # noqa: N801
    """Errors of what reads training text, in a specification's words."""

    def __init__(self, source: SourceSpec, path: str = "", name: str = "") -> None:
        self._source, self._path, self._name = source, path, name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DataError):
            said = str(error).replace("data.text_key", "text_key").replace("data.source", "source")
            if self._path != self._name:
                said = said.replace(self._path, self._name)
            raise DataError(f"source {self._source.name}: {said}") from error


def holds_tokens(source: SourceSpec, items: Sequence[Item]) -> bool:
    """Whether a source is tokenised already.

    Raises:
        DataError: a part of it is.
    """
    if source.format == HUB:
        return False
    kinds = {is_tokens(piece.name, source.format) for item in items for piece in item.pieces}
    if len(kinds) > 1:
        raise DataError(
            f"source {source.name}: expected text or tokens, got files of both; name them as two sources"
        )
    return kinds == {True}
