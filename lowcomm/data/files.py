"""Which files a source has: Python's own sources, a folder, a file or a glob.

A folder is read recursively. Links are followed, each folder behind them is read once, however many
links lead to it or back. Hidden files and folders and `__pycache__` are not looked at.
"""

from __future__ import annotations

import glob
import os
import stat
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from lowcomm.data.left_out import BROKEN_LINK, FOLDERS, LINKED_TWICE, NO_FILE, LeftOut
from lowcomm.errors import DataError

STDLIB = "stdlib"

_SAVED = frozenset({"state.json", "dataset_info.json"})
"""Beside the .arrow files of a data set that `datasets` saved, whose folder above has the last one."""
_SAVED_SPLITS = "dataset_dict.json"
_STDLIB_SKIPPED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib-dynload"}
)


def find_files(source: str) -> tuple[list[Path], LeftOut]:
    """The files of a source, ordered by their paths relative to it, and what is left out.

    Raises:
        DataError: nothing is there, or it can't be read.
    """
    path = Path(source).expanduser()
    if source == STDLIB:
        return _stdlib_files()
    if path.is_dir():
        left_out = LeftOut(path)
        return _sorted(_walk(path, left_out), path), left_out
    if path.is_file():
        return [path], LeftOut(path.parent)
    if glob.has_magic(source):
        return _glob_files(source, path)
    there = "nothing is there"
    if path.exists():
        there = "it is a pipe, socket or device; copy what it gives into a file"
    elif path.is_symlink():
        there = "it is a link to nothing"
    raise DataError(
        f'data.source {source}: expected "{STDLIB}", a folder, a file or a glob, but {there} '
        f"(relative paths start at {Path.cwd()})"
    )


def _glob_files(source: str, path: Path) -> tuple[list[Path], LeftOut]:
    fixed, pattern = Path(), path
    for count, part in enumerate(path.parts[:-1], start=1):
        # a folder that is there by this very name is meant, whatever brackets are in its name
        if glob.has_magic(part) and not (fixed / part).exists():
            break
        fixed, pattern = fixed / part, Path(*path.parts[count:])
    start = glob.escape(str(fixed)) if fixed.parts else ""
    written, literal = str(pattern), str(pattern).replace("[", "[[]")
    matches = glob.glob(os.path.join(start, written), recursive=True)
    matches = matches or glob.glob(os.path.join(start, literal), recursive=True)
    left_out, files = LeftOut(fixed), []
    real: set[Path] = set()
    for match in sorted(map(Path, matches), key=lambda match: (len(match.parts), match.as_posix())):
        if match.is_dir():
            if "**" not in pattern.parts:
                left_out.add(match, FOLDERS)
        elif _is_file(match, left_out):
            place = match.parent.resolve() / match.name  # `**` follows links, also those that lead back
            if place in real:
                left_out.add(match, LINKED_TWICE)
            else:
                real.add(place)
                files.append(match)
    if not files:
        also = f"; left out: {left_out}" if left_out else ""
        raise DataError(
            f"data.source {source}: expected files, but the glob matches none in {Path.cwd()}{also}"
        )
    return _sorted(files, fixed), left_out


def _stdlib_files() -> tuple[list[Path], LeftOut]:
    root = Path(sysconfig.get_path("stdlib"))
    left_out = LeftOut(root)
    # config-3.x and _sysconfigdata describe how this machine's Python was built, sitecustomize is its owner's
    files = (
        path
        for path in _walk(root, left_out, skipped=_STDLIB_SKIPPED, follow=False)
        if path.suffix == ".py" and not path.name.startswith(("_sysconfigdata", "sitecustomize"))
        if not path.relative_to(root).parts[0].startswith("config-")
    )
    found = _sorted(files, root)
    if not found:
        raise DataError(
            f"data.source {STDLIB}: expected Python's own sources in {root}, got no .py files; "
            "name a folder of text instead"
        )
    return found, left_out


def _walk(
    root: Path, left_out: LeftOut, *, skipped: frozenset[str] = frozenset(), follow: bool = True
) -> Iterator[Path]:
    """The files below a folder: first those that no link leads to, then those behind each link."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: can't be read: {error.strerror}") from error

    seen: set[tuple[int, int]] = set()
    starts = [root]
    while starts:
        links: list[Path] = []
        for start in starts:
            if start is not root and _leads_back(start):
                left_out.add(start, LINKED_TWICE)
                continue
            for folder, folders, names in os.walk(start, onerror=refuse):
                if not _first_time(Path(folder), seen):
                    left_out.add(Path(folder), LINKED_TWICE)
                    folders.clear()
                    continue
                shown = [name for name in folders if not _hidden(name) and name not in skipped]
                about = {*_SAVED, _SAVED_SPLITS} if set(names) >= _SAVED or _SAVED_SPLITS in names else set()
                files = [name for name in names if not _hidden(name) and name not in about]
                left_out.hidden += sum(map(_hidden, (*names, *folders)))
                linked = [name for name in shown if Path(folder, name).is_symlink()]
                links += [Path(folder, name) for name in linked] if follow else []
                folders[:] = [name for name in shown if name not in linked]
                yield from (path for name in files if _is_file(path := Path(folder, name), left_out))
        starts = sorted(links)


def _leads_back(link: Path) -> bool:
    return link.parent.resolve().is_relative_to(link.resolve())


def _first_time(folder: Path, seen: set[tuple[int, int]]) -> bool:
    found = folder.stat()
    place = found.st_dev, found.st_ino
    if place in seen:
        return False
    seen.add(place)
    return True


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def _is_file(path: Path, left_out: LeftOut) -> bool:
    """Whether it can be read like a file: a named pipe in the folder would block for ever."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        left_out.add(path, BROKEN_LINK)
        return False
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        left_out.add(path, NO_FILE)
        return False
    return True


def _sorted(paths: Iterable[Path], root: Path) -> list[Path]:
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())
