"""The peers of a measurement: processes that take lines and answer with JSON lines, one for each event.

Each runs in a session of its own, so that whatever it starts (daemons, forks) can be found and ended
with it; hivemind's processes outlive a killed parent, and so do their shared-memory segments. Where many
come and go, they are forked from a process that has loaded what they need, so that a start does not cost
seconds of imports.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from lowcomm.errors import ExchangeError
from lowcomm.launching.child import end_session, start_child
from lowcomm.launching.process_table import session
from lowcomm.types import Json

SHARED_MEMORY = Path("/dev/shm")
LEAVE_S = 10.0
"""Seconds that a peer has to leave by itself before it is ended."""


@dataclass(kw_only=True)
class _Child:
    """One of them.

    Attributes:
        messages: its standard error, kept for when it fails; hivemind prints many harmless complaints.
        on_event: called, in a thread of its own, after each line and at the end.
    """

    process: subprocess.Popen[bytes] | ForkServerProcess
    stdin: IO[bytes]
    stdout: IO[bytes]
    messages: Path
    on_event: Callable[[], None]
    events: queue.Queue[bytes | None] = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, timeout_s: float | None = None) -> int | None:
        """The exit code; None where it still runs after that time."""
        if isinstance(self.process, ForkServerProcess):
            self.process.join(timeout_s)
            return self.process.exitcode
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def _read(self) -> None:
        with self.stdout:
            for line in self.stdout:
                self.events.put(line)
                self.on_event()
        self.events.put(None)
        self.on_event()


class Children:
    """Processes `python -m PROGRAM ROLE '{settings}'`, ended when the context is left.

    Args:
        program: a module with `main(arguments)`: reads the two arguments, and lines from the standard
            input; prints one JSON line per event; ends when the input does.
        role: what they are, also for errors.
        prefix: put before each command, with {number} replaced, e.g. to enter a network namespace.
        deadline_s: longest wait for an event.
        dies: the signal that a peer gets if this process ends without a word; else its input ends.
        preload: modules; where there are any, peers are forked from a process that has loaded them.
    """

    def __init__(
        self,
        program: str,
        role: str,
        *,
        prefix: Sequence[str] = (),
        deadline_s: float,
        dies: signal.Signals | None = None,
        preload: Sequence[str] = (),
    ) -> None:
        self._program, self._role, self._prefix = program, role, prefix
        self._deadline_s, self._dies = deadline_s, dies
        self._context: ForkServerContext | None = None
        if preload:
            self._context = multiprocessing.get_context("forkserver")
            self._context.set_forkserver_preload([program, *preload])
        self._folder = tempfile.TemporaryDirectory(prefix="lowcomm-peers-")
        self._peers: list[_Child] = []
        self._heard: queue.Queue[int] = queue.Queue()
        self._seen: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(patient=error is None)

    # -- one of them -------------------------------------------------------------------------------

    def start(self, settings: Mapping[str, Json]) -> int:
        """Start the next peer and return its number."""
        number = len(self._peers)
        messages = Path(self._folder.name) / str(number)
        messages.touch()
        words = [self._role, json.dumps({**settings, "number": number})]
        start = self._fork if self._context else self._spawn
        peer = start(number, words, messages)
        self._peers.append(peer)
        return number

    def say(self, number: int, line: str) -> None:
        """Send a peer a line."""
        with contextlib.suppress(BrokenPipeError):  # it has died; what it said last is still to be read
            self._peers[number].stdin.write(line.encode() + b"\n")
            self._peers[number].stdin.flush()

    def news(self, number: int) -> list[dict[str, Any]]:
        """What a peer has said since it was last asked."""
        events, waiting = [], self._peers[number].events
        while not waiting.empty() and (line := waiting.get()) is not None:
            events.append(json.loads(line))
        return events

    def wait_for(self, number: int, kind: str) -> dict[str, Any]:
        """The next event of a peer, which must be of this kind.

        Raises:
            ExchangeError: the peer has ended, or stayed silent past the deadline.
        """
        peer = self._peers[number]
        try:
            line = peer.events.get(timeout=self._deadline_s)
        except queue.Empty:
            raise ExchangeError(
                f"{self._role}: peer {number} gave no {kind!r} within {self._deadline_s:g} s; "
                f"{self.last_message(number)}"
            ) from None
        if line is None:
            raise ExchangeError(
                f"{self._role}: peer {number} ended early with exit code {peer.wait()}; "
                f"{self.last_message(number)}"
            )
        event: dict[str, Any] = json.loads(line)
        if event["event"] != kind:
            raise ExchangeError(
                f"{self._role}: expected {kind!r} from peer {number}, got {line.decode().strip()}"
            )
        self._seen |= session(peer.pid)
        return event

    def ask(self, number: int, kind: str) -> dict[str, Any]:
        """Send a peer a line, and return the event of this kind that it answers with.

        Raises:
            ExchangeError: see `wait_for`.
        """
        self.say(number, kind)
        return self.wait_for(number, kind)

    def kill(self, number: int) -> None:
        """SIGKILL, also of one that stands still."""
        os.kill(self._peers[number].pid, signal.SIGKILL)

    def code(self, number: int) -> int | None:
        """The exit code of a peer; negative = ended by that signal; None = it runs, or may have news."""
        peer = self._peers[number]
        return None if peer.reader.is_alive() else peer.wait(0.0)

    def wait_for_end(self, number: int, timeout_s: float | None = None) -> None:
        """Wait until a peer that ends by itself is gone.

        Raises:
            ExchangeError: it still lives at the deadline.
        """
        timeout_s = self._deadline_s if timeout_s is None else timeout_s
        if self._peers[number].wait(timeout_s) is None:
            raise ExchangeError(f"{self._role}: peer {number} did not end within {timeout_s:g} s")

    def last_message(self, number: int) -> str:
        """What a peer said last on its standard error, for people."""
        lines = self._peers[number].messages.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"its last message: {last}" if last else "it printed no message"

    # -- all of them -------------------------------------------------------------------------------

    def round(self) -> list[dict[str, Any]]:
        """Let all peers go at once, and collect what each of them says about the round."""
        for number in range(len(self._peers)):
            self.say(number, "go")
        return [self.wait_for(number, "round") for number in range(len(self._peers))]

    def next(self) -> int:
        """Wait, for ever, until a peer says something or ends; which one. Once for each event."""
        return self._heard.get()

    def close(self, *, patient: bool) -> None:
        """End all peers and what they have started; `patient` lets them leave by themselves first."""
        for peer in self._peers:
            with contextlib.suppress(BrokenPipeError):
                peer.stdin.close()
        for peer in self._peers:
            if peer.wait(LEAVE_S if patient else 0.0) is None:
                os.kill(peer.pid, signal.SIGKILL)
            self._seen |= end_session(peer.pid)
            peer.wait()
        self._peers.clear()
        self._folder.cleanup()
        for pid in self._seen:
            for segment in SHARED_MEMORY.glob(f"torch_{pid}_*"):
                segment.unlink(missing_ok=True)

    # -- how they start ----------------------------------------------------------------------------

    def _spawn(self, number: int, words: Sequence[str], messages: Path) -> _Child:
        prefix = [part.replace("{number}", str(number)) for part in self._prefix]
        with messages.open("ab") as file:
            process = start_child(
                [*prefix, sys.executable, "-m", self._program, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                environment={**os.environ, "OMP_NUM_THREADS": "1"},
                dies=self._dies,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        return _Child(
            process=process,
            stdin=process.stdin,
            stdout=process.stdout,
            messages=messages,
            on_event=lambda: self._heard.put(number),
        )

    def _fork(self, number: int, words: Sequence[str], messages: Path) -> _Child:
        assert self._context is not None
        inputs, commands = self._context.Pipe(duplex=False)
        events, outputs = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=_run_forked, args=(self._program, words, inputs, outputs, str(messages))
        )
        process.start()
        inputs.close()
        outputs.close()
        return _Child(
            process=process,
            stdin=os.fdopen(os.dup(commands.fileno()), "wb", buffering=0),
            stdout=os.fdopen(os.dup(events.fileno()), "rb"),
            messages=messages,
            on_event=lambda: self._heard.put(number),
        )


def _run_forked(
    program: str, words: Sequence[str], inputs: Connection, outputs: Connection, messages: str
) -> None:
    """What a forked peer begins with: a session and standard streams of its own."""
    os.setsid()
    standard_error = os.open(messages, os.O_WRONLY | os.O_APPEND)
    for standard, fd in enumerate((inputs.fileno(), outputs.fileno(), standard_error)):
        os.dup2(fd, standard)
    inputs.close()
    outputs.close()
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    importlib.import_module(program).main(words)
