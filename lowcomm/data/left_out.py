"""What a source holds and is not trained on: counted by reason, and said once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

NAMED = 3
"""So many files of each reason are named in the warning; all of them with -v."""


class Reason(NamedTuple):
    """Why files are left out, and what to do about it; after a number."""

    words: str
    advice: str = ""


EMPTY = Reason("empty")
BINARY = Reason("binary")
BROKEN_LINK = Reason("broken links")
NO_FILE = Reason("pipes, sockets or devices")
NOT_UTF8 = Reason("not UTF-8", "convert with iconv -f ENCODING -t UTF-8")
NO_MARK = Reason("UTF-16 without a byte order mark", "convert with iconv -f UTF-16LE -t UTF-8")
ARCHIVE = Reason("of other formats", "unpack or convert them")
DAMAGED = Reason("compressed, and damaged or cut short", "fetch them again")
NO_ZSTD = Reason("compressed with zstd", "pip install zstandard, or unpack with zstd -d")
LINKED_TWICE = Reason("links to folders that hold them or are read already")
FOLDERS = Reason("folders that the glob matches", "end it with /** to read what is in them")


class LeftOutError(Exception):
    """A file is no text that can be read for sure.

    Args:
        reason: one of those above.
        detail: of this file, e.g. where its first wrong byte is.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason.words)
        self.reason, self.detail = reason, detail


class LeftOut:
    """The files of one source that are left out.

    Args:
        root: names are shown relative to it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._by_reason: dict[Reason, list[str]] = {}
        self.hidden = 0

    def __len__(self) -> int:
        return sum(map(len, self._by_reason.values()))

    def add(self, path: Path, reason: Reason, detail: str = "") -> None:
        """Note a file or folder."""
        name = str(path.relative_to(self._root)) if path.is_relative_to(self._root) else str(path)
        name = name if name.isprintable() else ascii(name)
        self._by_reason.setdefault(reason, []).append(f"{name}: {detail}" if detail else name)

    def __str__(self) -> str:
        """How many for which reason, and the first names of each, in one line."""
        parts = []
        for reason, names in self._by_reason.items():
            more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
            todo = f"; {reason.advice}" if reason.advice else ""
            parts.append(f"{len(names):,} {reason.words} ({', '.join(names[:NAMED])}{more}{todo})")
        return ", ".join(parts)

    def tell(self, source: str, level: int = logging.WARNING) -> None:
        """One line, if there is anything; with -v all names, a line each."""
        if self:
            logger.log(level, "data.source %s: left out of the text: %s", source, self)
        for reason, names in self._by_reason.items():
            for name in names:
                logger.info("left out: %s (%s)", name, reason.words)
        if self.hidden:
            logger.info("data.source %s: %d hidden files and folders are not looked at", source, self.hidden)
