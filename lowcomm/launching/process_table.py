"""The processes of this machine as Linux shows them: who started whom, and what is left over."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessKey:
    """A process that can't be mistaken for a later one with the same id."""

    pid: int
    started: str


def key_of(pid: int) -> ProcessKey | None:
    """The process with this id; None if there is none, or only its exit code is left."""
    try:
        fields = (PROC / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else ProcessKey(pid, fields[19])


def alive(process: ProcessKey) -> bool:
    """Whether it still runs."""
    return key_of(process.pid) == process


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has at a moment: processor time so far, memory in RAM, threads, open files."""

    processor_s: float
    memory_bytes: int
    threads: int
    open_files: int


def usage(pid: int) -> Usage:
    """What a process of this user takes.

    Raises:
        OSError: there is none.
    """
    folder = PROC / str(pid)
    fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    pages = int((folder / "statm").read_text(encoding="utf-8").split()[1])
    return Usage(
        processor_s=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        memory_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
        threads=int(fields[17]),
        open_files=len(list((folder / "fd").iterdir())),
    )


def children_of(pid: int) -> list[ProcessKey]:
    """The processes that any thread of a process has started."""
    try:
        tasks = list((PROC / str(pid) / "task").iterdir())
    except OSError:
        return []
    found = []
    for task in tasks:
        try:
            children = (task / "children").read_text(encoding="utf-8").split()
        except OSError:
            continue  # the thread has just ended
        found += [key for child in children if (key := key_of(int(child))) is not None]
    return found


def session(leader: int) -> set[int]:
    """The processes of the session that this one leads, itself included."""
    found = set()
    for entry in PROC.glob("[0-9]*"):
        try:
            # the command in brackets may hold spaces; after it: state, parent, group, session
            number = int((entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[3])
        except (OSError, ValueError):
            continue  # it has ended meanwhile
        if number == leader:
            found.add(int(entry.name))
    return found


def with_variable(name: str, value: str) -> list[ProcessKey]:
    """All processes but this one that have inherited an environment variable."""
    wanted = f"{name}={value}".encode()
    found = []
    for entry in PROC.iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue  # gone, or somebody else's
        key = key_of(int(entry.name))
        if key is not None and wanted in environment.split(b"\0"):
            found.append(key)
    return found


def describe(process: ProcessKey) -> str:
    """Its command, for people."""
    try:
        words = (PROC / str(process.pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return f"process {process.pid}"
    return (
        f"process {process.pid} ({' '.join(word.decode(errors='replace') for word in words)[:120].strip()})"
    )
