"""Sources that are not on this machine: files behind any URL of fsspec, and data sets of a hub.

A file is fetched whole, by the process that reads it, and removed after that: then every format is read in
one way, and no more files of a source lie on the disk than there are processes.
"""

from __future__ import annotations

import glob
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowcomm.data.making.spec import SourceSpec
from lowcomm.errors import DataError

logger = logging.getLogger(__name__)

PAUSES_S = (1.0, 4.0, 16.0)
"""Before a file is asked for again: servers answer 429 and 503, and connections break."""
_BUSY = (408, 429)
"""Of the answers that say that the asker is wrong, those that pass."""


class RefusedError(DataError):
    """It is not there, or not for us: asking again changes nothing."""


def is_remote(url: str) -> bool:
    """Whether it is a URL of anything but a local file."""
    return "://" in url and not url.startswith("file://")


def list_files(url: str) -> list[tuple[str, int]]:
    """The files behind a URL, a glob or a folder there, in order: (URL, bytes; -1 = the server doesn't say).

    Raises:
        DataError: there are none, or they can't be listed.
    """
    with _told(url):
        fs, path = _file_system(url)
        protocol = url.partition("://")[0]
        if glob.has_magic(path):
            names = fs.glob(path)
        elif protocol in ("http", "https") and not path.endswith("/"):
            names = [path]  # to ask whether it is a folder would fetch it
        else:
            names = fs.find(path) if fs.isdir(path) else [path]
        found = []
        for name in sorted(names):
            try:
                size = fs.info(name).get("size")
            except (
                FileNotFoundError
            ):  # so fsspec says of any answer of an HTTP server; `fetch` tells them apart
                size = None
            found.append((fs.unstrip_protocol(name), -1 if size is None else int(size)))
    if not found:
        raise DataError(f"{url}: expected files, but nothing there matches")
    return found


def fetch(url: str, size_bytes: int, to: Path, pauses_s: tuple[float, ...] = PAUSES_S) -> None:
    """Get a file.

    Args:
        url: as `list_files` gave it.
        size_bytes: as well.
        to: where it goes.
        pauses_s: before each further try.

    Raises:
        DataError: it doesn't come, or not as a whole.
    """
    for pause_s in (*pauses_s, None):
        try:
            with _told(url):
                fs, path = _file_system(url)
                fs.get_file(path, str(to))
            found = to.stat().st_size
            if size_bytes >= 0 and found != size_bytes:
                raise DataError(f"{url}: expected {size_bytes:,} bytes, got {found:,}; the connection broke")
            return
        except DataError as error:
            if pause_s is None or isinstance(error, RefusedError):
                raise
            logger.warning("%s; again in %g s", error, pause_s)
            time.sleep(pause_s)


def hub_parts(source: SourceSpec) -> int:
    """How many parts a hub's data set is read in.

    Raises:
        DataError: it can't be opened.
    """
    with _told(source.url):
        return int(_stream(source).num_shards)


def hub_documents(source: SourceSpec, part: int, parts: int) -> Iterator[bytes]:
    """The documents of one part of a hub's data set, streamed.

    Raises:
        DataError: it can't be read, or has no such column.
    """
    with _told(source.url):
        rows = iter(_stream(source).shard(num_shards=parts, index=part))
    while True:
        with _told(source.url):
            row = next(rows, None)
        if row is None:
            return
        if source.text_key not in row:
            raise DataError(
                f"{source.url}: expected the column {source.text_key!r}, got the columns {', '.join(row)}; "
                "set data.text_key"
            )
        text = row[source.text_key]
        if text is not None:
            yield str(text).encode("utf-8")


def _stream(source: SourceSpec) -> Any:
    from datasets import load_dataset

    return load_dataset(source.url, source.config or None, split=source.split, streaming=True)


def _file_system(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(url)
    return fs, path


@contextmanager
def _told(url: str) -> Iterator[None]:
    """What libraries raise, in one line with the URL."""
    try:
        yield
    except ImportError as error:
        missing = "pip install 'lowcomm[data,hub]', and what it names"
        raise RefusedError(f"{url}: expected a library that reads it, got: {error}; {missing}") from error
    except FileNotFoundError as error:
        raise RefusedError(f"{url}: expected a file, got nothing of that name (404)") from error
    except Exception as error:  # each file system raises errors of its own library, most of them no OSError
        status = getattr(error, "status", None)
        words = " ".join(str(getattr(error, "message", None) or error).split())[:200]
        said = f"{status} {words}" if status else f"{type(error).__name__}: {words}"
        final = isinstance(status, int) and 400 <= status < 500 and status not in _BUSY
        raise (RefusedError if final else DataError)(f"{url}: can't be read: {said}") from error
