"""Formats of the files of a source, told apart by suffix.

What a file's factory takes says what it needs: `text_key`, `alone`, whether the file is the whole source, and
`part`, where it can be read in parts.
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
        "parquet": "parquet",
        "arrow": "arrow",
    },
    key="format",
)
OTHERWISE = "text"
"""The format of files with a suffix that is nobody's."""


def format_of(path: Path, name: str = "") -> Format:
    """The format of a file: by name, or by its suffix.

    Raises:
        ConfigError: there is none of this name.
    """
    formats = {each: cast(Format, METHODS.spec(each)) for each in METHODS.names}
    if name:
        return cast(Format, METHODS.spec(name))
    suffix = unpacked_suffix(path)
    return next((each for each in formats.values() if suffix in each.suffixes), formats[OTHERWISE])


def reader_for(path: Path, name: str = "", **given: Any) -> Reader:
    """What reads a file, by its suffix or a format's name.

    Args:
        given: `text_key` and `alone`, and `part` where it is one of the format's.
    """
    chosen = format_of(path, name)
    return chosen.make(**{key: given[key] for key in chosen.parameters if key in given})
