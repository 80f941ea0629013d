"""The libp2p daemon (p2pd) as a child that never outlives this process."""

from __future__ import annotations

import asyncio
import collections
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowcomm.errors import ExchangeError
from lowcomm.interrupts import die_with_parent
from lowcomm.open_files import MOST_LINKS

logger = logging.getLogger(__name__)

_LINES_KEPT = 20
_TERMINATE_S = 3.0
_ENVIRONMENT = {"LIBP2P_TCP_REUSEPORT": "false"}
"""Dialling from the listening port makes two peers that dial each other at once meet in one connection in
which both are the dialer; the handshake fails, and libp2p lets neither dial again for 5 s."""


def _defaults() -> dict[str, str]:
    """Of p2pd's environment, where the user's sets nothing else.

    Go runs on all cores and has each thread look for work before it sleeps, which takes them from training.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return {"GOLOG_LOG_LEVEL": "warn", "GOMAXPROCS": str(max(1, cores // 2))}


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonOptions:
    """What p2pd is started with.

    Attributes:
        listen: multiaddrs to listen on; port 0 takes a free one.
        announce: multiaddrs to tell others instead of those found; their ports must not be 0.
        relay: whether links may pass through, and this peer may serve as, a circuit relay.
        auto_relay: look for a relay if this peer can't be reached from outside.
        trusted_relays: multiaddrs of the relays that `auto_relay` may use.
        nat_port_map: ask the router for a port (UPnP, NAT-PMP).
    """

    listen: Sequence[str] = ("/ip4/127.0.0.1/tcp/0",)
    announce: Sequence[str] = ()
    relay: bool = False
    auto_relay: bool = False
    trusted_relays: Sequence[str] = ()
    nat_port_map: bool = False

    def arguments(self) -> list[str]:
        """As p2pd takes them on its command line."""
        flags = {
            "hostAddrs": ",".join(self.listen),
            "announceAddrs": ",".join(self.announce),
            "trustedRelays": ",".join(self.trusted_relays),
            "connLo": str(2 * MOST_LINKS),  # its own 512 would break links of a large swarm
            "connHi": str(4 * MOST_LINKS),
        }
        switches = {
            "relay": self.relay or self.auto_relay,
            "autoRelay": self.auto_relay,
            "natPortMap": self.nat_port_map,
            "autonat": False,
            "b": False,  # would dial the public IPFS network
            "dhtServer": True,  # finds the addresses of peers known by id alone
            "connManager": True,
            "tls": True,
        }
        texts = [f"-{name}={value}" for name, value in flags.items() if value]
        return texts + [f"-{name}={int(value)}" for name, value in switches.items()]


class Daemon:
    """A running p2pd.

    Args:
        on_exit: called in the event loop, with a reason in words, if p2pd ends before `stop`.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, control_socket: Path, on_exit: Callable[[str], None]
    ) -> None:
        self._process, self.control_socket, self._on_exit = process, control_socket, on_exit
        self._lines: collections.deque[str] = collections.deque(maxlen=_LINES_KEPT)
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._watch_task = asyncio.get_running_loop().create_task(self._watch())

    @property
    def pid(self) -> int:
        """The process id of p2pd."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether p2pd runs."""
        return self._process.returncode is None

    @classmethod
    async def start(
        cls,
        program: Path,
        key_file: Path,
        folder: Path,
        options: DaemonOptions,
        on_exit: Callable[[str], None],
        timeout_s: float = 15.0,
    ) -> Daemon:
        """Start p2pd with its control socket in `folder`.

        Raises:
            ExchangeError: it can't be run, ended at once, or was not ready after `timeout_s`.
        """
        control_socket = folder / "p2pd.sock"
        arguments = [f"-listen=/unix{control_socket}", f"-id={key_file}", *options.arguments()]
        try:
            process = await asyncio.create_subprocess_exec(
                str(program),
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**_defaults(), **os.environ, **_ENVIRONMENT},
                preexec_fn=die_with_parent(signal.SIGKILL),
                start_new_session=True,  # Ctrl-C is for us; we then leave in order and end it
            )
        except OSError as error:
            raise ExchangeError(f"p2pd can't be started ({program}): {error}; reinstall hivemind") from error
        daemon = cls(process, control_socket, on_exit)
        try:
            async with asyncio.timeout(timeout_s):
                await daemon._ready
        except TimeoutError as error:
            await daemon.stop()
            raise ExchangeError(f"p2pd was not ready after {timeout_s:g} s{daemon._tail()}") from error
        except BaseException:
            await daemon.stop()
            raise
        return daemon

    async def stop(self) -> None:
        """End p2pd: ask, wait 3 s, then kill. Idempotent."""
        self._stopping = True
        if self.alive:
            self._signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(_TERMINATE_S):
                    await self._process.wait()
            except TimeoutError:
                self._signal(signal.SIGKILL)
        await self._process.wait()
        await self._watch_task

    def kill(self) -> None:
        """End p2pd at once, as if it had died: `on_exit` is called."""
        if self.alive:
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        # not Process.terminate: it may take the exit code away from asyncio's own watcher
        try:
            os.kill(self._process.pid, number)
        except ProcessLookupError:
            pass  # it ended by itself in between

    def _tail(self) -> str:
        return "".join(f"\n  p2pd: {line}" for line in list(self._lines)[-3:])

    async def _watch(self) -> None:
        """Drain p2pd's output, so that it never blocks on it, until it ends."""
        assert self._process.stdout is not None
        while True:
            try:
                raw = await self._process.stdout.readline()
            except ValueError:  # a line above the reader's limit; the reader has dropped it
                continue
            if not raw:
                break
            line = raw.decode(errors="replace").rstrip()[:500]
            self._lines.append(line)
            logger.debug("p2pd: %s", line)
            if line.startswith("Peer ID:") and not self._ready.done():
                self._ready.set_result(None)
        code = await self._process.wait()
        if not self._ready.done():
            self._ready.set_exception(ExchangeError(f"p2pd ended with code {code}{self._tail()}"))
        elif not self._stopping:
            logger.error("p2pd ended with code %s%s", code, self._tail())
            self._on_exit(f"this peer's p2pd ended with code {code}")
