"""Formats of the files of a source, told apart by suffix.

What a file's factory takes says what it needs: `text_key`, and `alone`, whether the file is the whole source.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from lowcomm.data.formats.base import Format, Reader
from lowcomm.data.text import unpacked_suffix
from lowcomm.methods import Methods

METHODS: Methods[Reader] = Methods(
    "lowcomm.data.formats",
    "data",
    {
        "text": "plain_text",
        "json_lines": "json_lines",
    },
    key="format",
)
OTHERWISE = "text"
"""The format of files with a suffix that is nobody's."""


def reader_for(path: Path, **given: Any) -> Reader:
    """What reads a file, by its suffix.

    Args:
        given: `text_key` and `alone`.
    """
    formats = [cast(Format, METHODS.spec(name)) for name in METHODS.names]
    otherwise = next(each for each in formats if each.name == OTHERWISE)
    chosen = next((each for each in formats if unpacked_suffix(path) in each.suffixes), otherwise)
    return chosen.make(**{name: given[name] for name in chosen.parameters})
