"""How a file becomes documents: what a format has to offer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lowcomm.methods import Spec

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
    """

    suffixes: tuple[str, ...] = ()
