"""The peers of a benchmark: processes that take one word per round and answer with JSON lines.

Each runs in a session of its own, so that whatever it starts (daemons, forks) can be found and ended
with it; hivemind's processes outlive a killed parent, and so do their shared-memory segments.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from lowcomm.errors import ExchangeError
from lowcomm.interrupts import signals_after_fork
from lowcomm.processes import die_with_parent
from lowcomm.types import Json

SHARED_MEMORY = Path("/dev/shm")
LEAVE_S = 10.0
"""Seconds that a peer has to leave by itself before it is ended."""


class Children:
    """Processes `python -m MODULE '{settings}'`, ended when the context is left.

    Args:
        module: reads its settings from the first argument, a line from the standard input per round, and
            prints one JSON line per event; ends when the input does.
        prefix: put before each command, with {number} replaced, e.g. to enter a network namespace.
        deadline_s: longest wait for an event.
        dies: the signal that a peer gets if this process ends without a word; else its input ends.
    """

    def __init__(
        self,
        module: str,
        *,
        prefix: Sequence[str] = (),
        deadline_s: float,
        dies: signal.Signals | None = None,
    ) -> None:
        self._module, self._prefix, self._deadline_s, self._dies = module, prefix, deadline_s, dies
        self._processes: list[subprocess.Popen[str]] = []
        self._events: list[queue.Queue[str | None]] = []
        self._messages: list[IO[str]] = []
        self._seen: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(patient=error is None)

    def start(self, settings: Mapping[str, Json]) -> int:
        """Start the next peer and return its number."""
        number = len(self._processes)
        # kept for when it fails; hivemind prints many harmless complaints as it ends
        messages = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        prefix = [part.replace("{number}", str(number)) for part in self._prefix]
        with signals_after_fork():
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", self._module, json.dumps({**settings, "number": number})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
                preexec_fn=None if self._dies is None else die_with_parent(self._dies),
            )
        events: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(process, events), daemon=True).start()
        self._processes.append(process)
        self._events.append(events)
        self._messages.append(messages)
        return number

    def wait_for(self, number: int, kind: str) -> dict[str, Any]:
        """The next event of a peer, which must be of this kind.

        Raises:
            ExchangeError: the peer has ended, or stayed silent past the deadline.
        """
        try:
            line = self._events[number].get(timeout=self._deadline_s)
        except queue.Empty:
            raise ExchangeError(
                f"{self._module}: peer {number} gave no {kind!r} within {self._deadline_s:g} s; "
                f"{self._last_message(number)}"
            ) from None
        if line is None:
            code = self._processes[number].wait()
            raise ExchangeError(
                f"{self._module}: peer {number} ended early with exit code {code}; "
                f"{self._last_message(number)}"
            )
        event: dict[str, Any] = json.loads(line)
        if event["event"] != kind:
            raise ExchangeError(f"{self._module}: expected {kind!r} from peer {number}, got {line.strip()}")
        self._seen |= _session(self._processes[number].pid)
        return event

    def ask(self, number: int, kind: str) -> dict[str, Any]:
        """Send a peer a line, and return the event of this kind that it answers with.

        Raises:
            ExchangeError: see `wait_for`.
        """
        self.say(number, kind)
        return self.wait_for(number, kind)

    def say(self, number: int, line: str) -> None:
        """Send a peer a line."""
        process = self._processes[number]
        assert process.stdin is not None
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died; what it said last is still to be read

    def kill(self, number: int) -> None:
        """SIGKILL, also of one that stands still."""
        self._processes[number].kill()

    def wait_for_end(self, number: int) -> None:
        """Wait until a peer that ends by itself is gone.

        Raises:
            ExchangeError: it still lives at the deadline.
        """
        try:
            self._processes[number].wait(self._deadline_s)
        except subprocess.TimeoutExpired:
            raise ExchangeError(f"{self._module}: peer {number} did not end") from None

    def _last_message(self, number: int) -> str:
        messages = self._messages[number]
        messages.seek(0)
        lines = messages.read().split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"its last message: {last}" if last else "it printed no message"

    def round(self) -> list[dict[str, Any]]:
        """Let all peers go at once, and collect what each of them says about the round."""
        for number in range(len(self._processes)):
            self.say(number, "go")
        return [self.wait_for(number, "round") for number in range(len(self._processes))]

    def close(self, *, patient: bool) -> None:
        """End all peers and what they have started; `patient` lets them leave by themselves first."""
        for process in self._processes:
            assert process.stdin is not None
            try:
                process.stdin.close()
            except BrokenPipeError:
                pass
        for process in self._processes:
            if patient:
                try:
                    process.wait(LEAVE_S)
                except subprocess.TimeoutExpired:
                    pass
            members = _session(process.pid)
            self._seen |= members
            for pid in members:
                _kill(pid)
            process.wait()
        for messages in self._messages:
            messages.close()
        self._processes.clear()
        for pid in self._seen:
            for segment in SHARED_MEMORY.glob(f"torch_{pid}_*"):
                segment.unlink(missing_ok=True)


def _read(process: subprocess.Popen[str], events: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            events.put(line)
    events.put(None)


def _session(leader: int) -> set[int]:
    """The live processes of a session that we have started, the leader included."""
    found = set()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            # the command in brackets may hold spaces; after it: state, parent, group, session
            session = int((folder / "stat").read_text().rpartition(")")[2].split()[3])
        except (OSError, ValueError):
            continue  # it has ended meanwhile
        if session == leader:
            found.add(int(folder.name))
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
