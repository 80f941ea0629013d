"""Files behind a URL, read from an offset on: http(s) here, all else by fsspec (s3, gs, file, memory, ...).

HTTP is read with ranges, so that what was cut goes on where it was; what a server says about when to come
back (`Retry-After`) is told on. fsspec's protocols bring their own retries and their own credentials.
"""

from __future__ import annotations

import email.utils
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Protocol

from lowcomm.clock import SystemClock
from lowcomm.errors import DataError

PIECE_BYTES = 1 << 18
TIMEOUT_S = 30.0
LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
"""What a server says that may give the same file a little later."""


class CutError(Exception):
    """The file did not come whole this time, and may the next.

    Args:
        after_s: how long the server wants to be left alone; 0 = it does not say.
    """

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.after_s = after_s


class Remote(Protocol):
    """Files below one address."""

    def read(self, name: str, start: int = 0) -> Iterator[bytes]:
        """The bytes of a file from `start` on.

        Args:
            name: as `chunks/000000.bin`.

        Raises:
            CutError: they end too early, or do not come at all; a later call may go on.
            DataError: there is no such file, or it may not be read.
        """
        ...


def open_remote(url: str) -> Remote:
    """What reads a corpus at this address.

    Raises:
        DataError: fsspec knows no such protocol, or lacks the library for it.
    """
    if url.startswith(("http://", "https://")):
        return Http(url)
    return FsSpec(url)


class Http:
    """Files of a web server, which should know ranges; where it doesn't, a cut file begins anew."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def read(self, name: str, start: int = 0) -> Iterator[bytes]:
        url = f"{self._url}/{name}"
        request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                self._pass_over(answer, start if answer.status != http.HTTPStatus.PARTIAL_CONTENT else 0)
                while piece := answer.read(PIECE_BYTES):
                    yield piece
        except urllib.error.HTTPError as error:
            said = f"{url}: the server says {error.code} {error.reason}"
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                said = f"{url}: expected more than {start:,} bytes, but there it ends; it was cut"
            if error.code not in LATER:
                raise DataError(f"{said}; look at data.source") from error
            raise CutError(said, _seconds(error.headers.get("Retry-After", ""))) from error
        except (OSError, http.client.HTTPException) as error:
            raise CutError(f"{url}: {_words(error)}") from error

    @staticmethod
    def _pass_over(answer: http.client.HTTPResponse, count: int) -> None:
        while count > 0:
            piece = answer.read(min(count, PIECE_BYTES))
            if not piece:
                return
            count -= len(piece)


class FsSpec:
    """Files of whatever fsspec knows."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        try:
            self._files, self._root = url_to_fs(url.rstrip("/"))
        except (ValueError, ImportError) as error:
            raise DataError(f"data.source {url}: expected a folder or a URL, got one that no "
                            f"installed library opens: {_words(error)}") from error  # fmt: skip
        self._url = url.rstrip("/")

    def read(self, name: str, start: int = 0) -> Iterator[bytes]:
        try:
            with self._files.open(f"{self._root}/{name}", "rb", block_size=PIECE_BYTES) as file:
                file.seek(start)
                while piece := file.read(PIECE_BYTES):
                    yield piece
        except (FileNotFoundError, PermissionError) as error:
            raise DataError(
                f"{self._url}/{name}: can't be read: {_words(error)}; look at data.source"
            ) from error
        except OSError as error:
            raise CutError(f"{self._url}/{name}: {_words(error)}") from error


def _seconds(given: str) -> float:
    """Of a `Retry-After`: a number, or a date (RFC 9110, 10.2.3)."""
    if given.strip().isdigit():
        return float(given)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(given).timestamp() - SystemClock().wall_s())
    except (TypeError, ValueError):
        return 0.0


def _words(error: BaseException) -> str:
    """What it says, without the brackets that urllib puts around the reason."""
    said = error.reason if isinstance(error, urllib.error.URLError) else error
    return " ".join(str(said).split()) or type(error).__name__
