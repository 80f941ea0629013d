"""How a file becomes documents: what a format has to offer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lowcomm.methods import Spec

Part = tuple[int, int]
"""Of a large file: from the first number to before the second, of bytes, or row groups."""
Reader = Callable[[Path], Iterator[bytes]]
"""The documents of a file in UTF-8, in order, one after the other; the same on every machine.

Raises LeftOutError if it is no such file, or not for sure; DataError, with the place, if it is one and has a
mistake in it; OSError or UnicodeDecodeError as they come.
"""


@dataclass(frozen=True, kw_only=True)
class Format(Spec[Reader]):
    """The last line of a format's file.

    Attributes:
        suffixes: of files in this format, in lower case, without the one of how they are packed.
        parts: of a file, of about so many bytes each; a factory that takes `part` reads one of them.
            None = it is read as a whole.
    """

    suffixes: tuple[str, ...] = ()
    parts: Callable[[Path, int], list[Part]] | None = None
