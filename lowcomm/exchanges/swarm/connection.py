"""p2pd's TCP connection to a peer, as the kernel sees it.

All streams to a peer share one connection of p2pd, and p2pd takes what it is given as fast as its queue (64
frames) and the kernel's (megabytes) hold it. What is written behind that waits for as long as these take to
empty, heartbeats too. p2pd has no setting for it and doesn't say how full they are; the kernel does. p2pd is
our child, so we may borrow its socket for a moment (pidfd_getfd, Linux 5.6), ask (TCP_INFO), and set how fast
it sends (SO_MAX_PACING_RATE). Where that is forbidden, as by the seccomp profiles of some containers, nothing
is known, and queues stay as they are.

BBR (Cardwell et al. 2016) measures the shortest round trip anew when it hasn't seen one as short for ten
seconds: for 0.2 s and a round trip it has four packets under way, and all that the kernel has taken waits, a
heartbeat for three round trips of 0.1 s. Where a connection is paced to its share of what is known to pass,
and would send more, queues are short without that. So BBR is begun anew before; it then takes over TCP's
shortest round trip.
"""

from __future__ import annotations

import ctypes
import functools
import os
import socket
import struct
import sys
import weakref
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

_PIDFD_GETFD = 438
# of struct tcp_info: tcpi_ca_state, _rtt, _pacing_rate, _bytes_acked, _notsent_bytes, _min_rtt
_FIELDS = struct.Struct("=xB66xI32xQ8xQ16xII")
_NOTHING_LOST = 0
_SO_MAX_PACING_RATE = 47
_RATE = struct.Struct("=Q")
_UNLIMITED = (1 << 64) - 1
_LEAST_RATE = 16 << 10
_ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
_BBR, _OTHER, _NAME_BYTES = b"bbr", b"reno", 16
_RENEWED_S = 5.0
"""BBR is begun anew so often, in half of the time after which it would measure."""
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """Of one connection, as the kernel sees it.

    Attributes:
        unsent_bytes: what it has taken and not sent.
        acked_bytes: what has arrived, since the connection was made.
        rate: bytes per second at which it sends now, at most.
        round_trip_s: smoothed.
        least_round_trip_s: of the last minutes.
    """

    unsent_bytes: int
    acked_bytes: int
    rate: int
    round_trip_s: float
    least_round_trip_s: float


class DaemonConnection:
    """Of one process to one peer; where both have dialled at once, its two connections taken together.

    Args:
        pid: p2pd, a child of this process.
        remotes: IP address and port at the other end of each connection.
    """

    def __init__(self, pid: int, remotes: Collection[tuple[str, int]]) -> None:
        self._pid = pid
        self._remotes = {end for host, port in remotes for end in ((host, port), (f"::ffff:{host}", port))}
        self._process: int | None = None
        self._numbers: list[int] | None = None
        self._rate = _UNLIMITED
        self._told: dict[int, int] = {}
        self._renewed_s: dict[int, float] = {}

    def pace(self, bytes_per_s: float) -> None:
        """Have the kernel send no faster from the next look on."""
        self._rate = _UNLIMITED if bytes_per_s == float("inf") else max(_LEAST_RATE, int(bytes_per_s))

    def look(self, now_s: float) -> ConnectionState | None:
        """The state of the connection, or of several taken together; None where it can't be known.

        Args:
            now_s: by the same clock in all looks.
        """
        process = self._open_process()
        if process is None:
            return None
        if self._numbers is None:
            self._numbers = [
                number for number in self._all_numbers() if self._ask(process, number, now_s) is not None
            ]
        answers = [self._ask(process, number, now_s) for number in self._numbers]
        known = [answer for answer in answers if answer is not None]
        if len(known) < len(answers):
            self._numbers = None  # a connection has ended; look for its successor the next time
            self._told.clear()
            self._renewed_s.clear()
        if not known:
            return None
        return ConnectionState(
            sum(state.unsent_bytes for state in known),
            sum(state.acked_bytes for state in known),
            max(state.rate for state in known),
            max(state.round_trip_s for state in known),
            min(state.least_round_trip_s for state in known),
        )

    def _open_process(self) -> int | None:
        """What stands for p2pd, and for no later process with its id; closed when this object goes."""
        if self._process is None and _LIBC is not None and hasattr(os, "pidfd_open"):
            try:
                self._process = os.pidfd_open(self._pid)
            except OSError:
                return None
            weakref.finalize(self, os.close, self._process)
        return self._process

    def _all_numbers(self) -> Iterator[int]:
        folder = f"/proc/{self._pid}/fd"
        try:
            for name in os.listdir(folder):
                try:
                    if os.readlink(f"{folder}/{name}").startswith("socket:"):
                        yield int(name)
                except OSError:
                    continue  # closed in between
        except OSError:
            return

    def _ask(self, process: int, number: int, now_s: float) -> ConnectionState | None:
        """Of one file descriptor of p2pd, if it is a connection to the other address."""
        assert _LIBC is not None
        borrowed = _LIBC.syscall(_PIDFD_GETFD, process, number, 0)
        if borrowed < 0:
            return None
        try:
            # of what kind it really is shows below, and looking it up takes longer than all the rest
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, borrowed)
        except OSError:  # the number is another file's by now
            os.close(borrowed)
            return None
        try:
            if connection.getpeername()[:2] not in self._remotes:
                return None
            if self._rate != self._told.get(number):
                connection.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, _RATE.pack(self._rate))
                self._told[number] = self._rate
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _FIELDS.size)
            if len(info) < _FIELDS.size:  # an old kernel
                return None
            state, round_trip_us, rate, acked, unsent, least_us = _FIELDS.unpack(info)
            limited = self._rate != _UNLIMITED and rate >= self._rate
            due = limited and state == _NOTHING_LOST
            if due and now_s - self._renewed_s.get(number, float("-inf")) >= _RENEWED_S:
                self._renewed_s[number] = now_s
                _renew(connection)
        except OSError:  # not connected, or not TCP
            return None
        finally:
            connection.close()
        return ConnectionState(unsent, acked, rate, round_trip_us / 1e6, least_us / 1e6)


def _renew(connection: socket.socket) -> None:
    """Begin BBR anew, if that is what controls the connection."""
    protocol, option = socket.IPPROTO_TCP, socket.TCP_CONGESTION
    name = connection.getsockopt(protocol, option, _NAME_BYTES).rstrip(b"\0")
    if name == _BBR and {_BBR, _OTHER} <= _allowed():
        connection.setsockopt(protocol, option, _OTHER)
        connection.setsockopt(protocol, option, _BBR)


@functools.cache
def _allowed() -> frozenset[bytes]:
    """The kinds of congestion control to which any process may change."""
    try:
        return frozenset(_ALLOWED.read_bytes().split())
    except OSError:
        return frozenset()
