"""One island of a chaos run: its folder, its process if it has one, and what it has written so far."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

from lowcomm.chaos.machine import CLOCK, SLOW, STALL_IN, STALL_OUT, cut_power
from lowcomm.chaos.records import METRICS, Ended, Line, Returned
from lowcomm.chaos.tape import ON_REQUEST, FaultKind
from lowcomm.launching.islands import ADDRESS_FILE, IslandProcess
from lowcomm.launching.process_table import ProcessKey, children_of


class Island:
    """A run folder and whoever trains in it.

    Attributes:
        name, folder, shard, port: an island that is started again keeps them; so whoever was told its
            address while it was away reaches it when it is back.
        peer: its name in the swarm, once known.
        trains: its process has written its start line.
        hindered: faults that it is under now: frozen, without p2pd, without a disk, ...
        returning: which fault is over, and since when, until it takes part again.
        took_part: commits of the swarm with it since it came (back).
        commits_since: commits of the swarm since then, with or without it.
        leaving: it was asked to end.
        machine: where its disk and its clock are broken.
        first_command: what its first process was started with.
        ends: how each of its processes ended that had written a start line.
    """

    def __init__(self, name: str, folder: Path, shard: int, port: int) -> None:
        self.name, self.folder, self.shard, self.port = name, folder, shard, port
        self.process: IslandProcess | None = None
        self.peer = ""
        self.trains = self.leaving = False
        self.hindered: list[str] = []
        self.took_part = self.commits_since = 0
        self.returning: tuple[FaultKind, float] | None = None
        self.inner_step = 0
        self.heard_s = 0.0
        self.ends: list[Ended] = []
        self.machine = folder.with_name(f"{folder.name}.machine")
        self.first_command: list[str] = []
        self._offset, self._rest = 0, b""

    @property
    def well(self) -> bool:
        """It trains, and nothing is wrong with it."""
        return self.process is not None and self.trains and not self.hindered and not self.leaving

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.process.pid

    @property
    def address(self) -> str | None:
        """The shared string that others join with, once it has one."""
        path = self.folder / ADDRESS_FILE
        if not self.trains or not path.exists():
            return None
        return path.read_text(encoding="utf-8").strip() or None

    def began(self, process: IslandProcess, now_s: float) -> None:
        """Its process was started."""
        self.process, self.trains, self.leaving, self.heard_s = process, False, False, now_s
        self.hindered.clear()
        self.took_part = self.commits_since = 0
        self.returning = None

    def back(self, kind: FaultKind, now_s: float) -> None:
        """A fault is over: from here on it is counted anew when it takes part."""
        self.took_part = self.commits_since = 0
        self.returning = kind, now_s

    def committed(self, now_s: float, participants: frozenset[str], well: set[str]) -> Returned | None:
        """The swarm has committed; the end of a fault, if that is it.

        Where sides of a split go on by themselves, an island is back in a round of all that are `well`.
        """
        split = self.returning is not None and self.returning[0] in ON_REQUEST
        took_part = self.peer in participants and (not split or well <= participants)
        self.commits_since += 1
        self.took_part += took_part
        if not took_part or self.returning is None:
            return None
        (kind, since_s), self.returning = self.returning, None
        return Returned(kind=kind, island=self.name, seconds=now_s - since_s)

    def daemons(self) -> list[ProcessKey]:
        """What its process has started: its p2pd."""
        return children_of(self.pid)

    # -- faults ------------------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.ended("killed")

    def ended(self, how: Ended) -> None:
        """Its process is gone."""
        if self.trains:
            self.ends.append(how)
        self.process, self.trains, self.leaving = None, False, False
        self.hindered.clear()

    def interrupt(self) -> None:
        """Ctrl-C."""
        assert self.process is not None
        self.leaving = True
        self.process.interrupt()

    def freeze(self, *, host: bool) -> Callable[[], None]:
        """SIGSTOP, of its p2pd too where the whole host stands still; returns what wakes it."""
        stopped = [self.pid, *(key.pid for key in (self.daemons() if host else ()))]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)

        def wake() -> None:
            for pid in stopped:
                try:
                    os.kill(pid, signal.SIGCONT)
                except ProcessLookupError:
                    pass  # it was killed while it stood still

        return wake

    def fill_disk(self) -> Callable[[], None]:
        """From now on it can't write to any file, as if the disk were full; returns what ends that.

        Python ignores SIGXFSZ, so a write fails with EFBIG. Sockets and pipes go on working.
        """
        pid = self.pid
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))

        def free() -> None:
            try:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
            except ProcessLookupError:
                pass

        return free

    def slow_disk(self) -> Callable[[], None]:
        """From now on a sync takes a second; returns what ends that."""
        return self._mark(SLOW, "")

    def set_clock(self, by_s: float) -> Callable[[], None]:
        """Its time of day jumps; returns what sets it right."""
        return self._mark(CLOCK, str(by_s))

    def stall(self, *, out: bool, into: bool) -> Callable[[], None]:
        """From now on its bulk data is held up, as told; returns what ends that."""
        ends = [self._mark(name, "") for name, held in ((STALL_OUT, out), (STALL_IN, into)) if held]

        def pass_on() -> None:
            for end in ends:
                end()

        return pass_on

    def _mark(self, name: str, text: str) -> Callable[[], None]:
        mark = self.machine / name
        mark.write_text(text, encoding="utf-8")
        return lambda: mark.unlink(missing_ok=True)

    def lose_power(self, now_s: float) -> None:
        """What it had not synced is gone; its process must be, too. `now_s` is the time of day."""
        cut_power(self.machine, self.folder, now_s)
        self._offset = min(self._offset, (self.folder / METRICS).stat().st_size)
        self._rest = b""

    # -- what it writes ----------------------------------------------------------------------------

    def news(self, now_s: float) -> list[Line]:
        """The whole lines of metrics.jsonl since the last call."""
        try:
            with (self.folder / METRICS).open("rb") as file:
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(added)
        *whole, self._rest = (self._rest + added).split(b"\n")
        lines = []
        for text in whole:
            try:
                line = json.loads(text)
            except ValueError:
                continue  # half a line of a process that was killed
            if isinstance(line, dict):
                lines.append(line)
        for line in lines:
            if line["kind"] == "start":
                self.trains, self.peer = True, str(line["peer"])
            elif line["kind"] == "train":
                self.inner_step, self.heard_s = int(line["inner_step"]), now_s
        if lines:
            self.heard_s = now_s
        return lines
