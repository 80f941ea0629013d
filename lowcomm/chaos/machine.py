"""`python -m lowcomm.chaos.machine FOLDER train ...`: an island whose disk, clock and bulk can be broken.

What it syncs is noted in FOLDER, so that a power cut can take the rest. While FOLDER/slow exists a sync takes
`SLOW_S`; what FOLDER/clock holds, in seconds, is added to the time of day. While FOLDER/stall_out exists no
bulk message leaves, while FOLDER/stall_in does none is taken in; control messages pass.
"""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowcomm.exchanges.base import Message
from lowcomm.types import PeerId

SLOW_S = 1.0
SYNCED, SLOW, CLOCK = "synced.jsonl", "slow", "clock"
STALL_OUT, STALL_IN = "stall_out", "stall_in"
LOOK_S = 0.05
FLUSHED_S = 5.0
"""What was written earlier than that before a power cut is on the disk without a sync, too."""
TORN_BYTES = 40


def cut_power(machine: Path, folder: Path, now_s: float) -> None:
    """Take from a run folder what was neither synced nor written long ago; `now_s` is the time of day.

    Of logs that grow line by line the last bytes go, of other files all beyond what was synced; names that no
    sync of their folder has seen go as well.
    """
    sizes: dict[int, int] = {}
    names: dict[int, set[str]] = {}
    for line in (machine / SYNCED).read_text(encoding="utf-8").splitlines():
        note = json.loads(line)
        if "names" in note:
            names[note["inode"]] = set(note["names"])
        else:
            sizes[note["inode"]] = note["size"]
    for path in folder.rglob("*"):
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or now_s - found.st_mtime > FLUSHED_S:
            continue
        synced = sizes.get(found.st_ino, 0)
        if path.suffix in (".jsonl", ".txt"):
            os.truncate(path, max(synced, found.st_size - TORN_BYTES))
        elif path.name not in names.get(path.parent.stat().st_ino, set()) and not synced:
            path.unlink()
        elif found.st_size > synced:
            os.truncate(path, synced)


def _noting(machine: Path, fsync: Callable[[int], None]) -> Callable[[int], None]:
    notes = os.open(machine / SYNCED, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def noted(handle: int) -> None:
        if (machine / SLOW).exists():
            threading.Event().wait(SLOW_S)
        fsync(handle)
        found = os.fstat(handle)
        note: dict[str, object] = {"inode": found.st_ino}
        if stat.S_ISDIR(found.st_mode):
            note["names"] = os.listdir(handle)
        else:
            note["size"] = found.st_size
        os.write(notes, (json.dumps(note) + "\n").encode())

    return noted


def _jumping(machine: Path, clock: Callable[[], float]) -> Callable[[], float]:
    def jumped() -> float:
        try:
            return clock() + float((machine / CLOCK).read_text())
        except (OSError, ValueError):
            return clock()

    return jumped


def _stall(kind: type, name: str, mark: Path) -> None:
    call = getattr(kind, name)

    async def stalled(self: Any, peer: PeerId, message: Message) -> None:
        while mark.exists():
            await asyncio.sleep(LOOK_S)
        await call(self, peer, message)

    setattr(kind, name, stalled)


def main(words: list[str]) -> None:
    """Run lowcomm's command in `words`, after the machine's folder."""
    machine = Path(words[0])
    machine.mkdir(exist_ok=True)
    from lowcomm.exchanges.swarm.exchange import SwarmExchange
    from lowcomm.outer.node import Node

    os.fsync = _noting(machine, os.fsync)  # type: ignore[assignment]
    time.time = _jumping(machine, time.time)
    _stall(SwarmExchange, "send_bulk", machine / STALL_OUT)
    _stall(Node, "on_bulk", machine / STALL_IN)
    sys.argv = ["lowcomm", *words[1:]]
    runpy.run_module("lowcomm", run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
