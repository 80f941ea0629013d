"""What a build leaves behind on its way: results that are there as a whole, or not at all.

A worker may outlive a build that was killed until its job is done, beside one of the next build with the same
job. What both write has their process's number in its name, and a point before it, until it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COUNTS = "counts.json"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name when all is on the disk."""
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    for file in unfinished.iterdir():
        to_disk(file)
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(unfinished)  # a worker that outlived a killed build has made it, too


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write to, which gets its name when it is on the disk."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    yield unfinished
    to_disk(unfinished)
    unfinished.replace(path)


def to_disk(file: Path) -> None:
    """Have its content on the disk, so that a name never stands for less."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def write_counts(folder: Path, counts: dict[str, Any]) -> None:
    """What is known of a result."""
    (folder / COUNTS).write_text(json.dumps(counts, sort_keys=True), encoding="utf-8")


def read_counts(folder: Path) -> dict[str, Any]:
    """What `write_counts` wrote."""
    found: dict[str, Any] = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
    return found
