"""Vectors of which each host of an island keeps its part, an equal range of the elements.

The ranks of one host share its memory, so one of them keeps the part of all. The lead makes, reads and frees
vectors; in the first rank of every other host a thread serves it, beside training, over one TCP connection.
That is not a process group's: these are requests from one side, at any time, that no collective of the
training threads may wait for. A connection is opened with a secret that the lead has broadcast inside the
island. On the wire there are fixed headers and raw numbers, nothing is unpickled.

    request    operation, vector, its elements on that host, offset, length (bytes); with WRITE the bytes
    answer     to READ: the bytes; nothing else is answered, and requests are served in order
    end        the lead closes the connection, or dies: the rank drops all it keeps

Who breaks the connection, on either side, ends it for good: a rank that is gone comes back with the
whole island, as torchrun restarts it.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import socket
import struct
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor

from lowcomm.errors import IslandError
from lowcomm.islands.vectors import FP32_BYTES, bytes_of

logger = logging.getLogger(__name__)

HEADER = struct.Struct("!BQQQQ")
WRITE, READ, FREE = 1, 2, 3
HELLO = struct.Struct("!32sI")
"""The secret, and the rank."""
LOOPBACK = "127.0.0.1"
SENT_AT_ONCE_BYTES = 1 << 22
"""A socket's timeout is for one call, however much it sends."""
OPEN_S = 60.0
"""All ranks are connected by then."""
HELLO_S = 5.0
"""Who connects says in this time who it is."""
STALL_S = 120.0
"""A rank that moves no byte for so long is gone."""

Broadcast = Callable[[Any], Any]


class Link:
    """The lead's connection to one rank; for use by any thread.

    Args:
        connection: owned from now on.
    """

    def __init__(self, rank: int, connection: socket.socket) -> None:
        self._rank, self._socket = rank, connection
        self._lock = threading.Lock()
        self._freed: deque[int] = deque()
        self._broken = ""
        connection.settimeout(STALL_S)

    def write(self, vector: int, elements: int, offset: int, data: memoryview) -> None:
        """Put bytes into a vector of so many elements, which is made if it is not there."""
        with self._talking():
            self._socket.sendall(HEADER.pack(WRITE, vector, elements, offset, len(data)))
            for start in range(0, len(data), SENT_AT_ONCE_BYTES):
                self._socket.sendall(data[start : start + SENT_AT_ONCE_BYTES])

    def read(self, vector: int, elements: int, offset: int, into: memoryview) -> None:
        """Fill `into` with what the vector holds from `offset` on."""
        with self._talking():
            self._socket.sendall(HEADER.pack(READ, vector, elements, offset, len(into)))
            receive(self._socket, into)

    def free(self, vector: int) -> None:
        """Drop a vector, now or as soon as what is under way is over; never raises, never waits for it.

        It is called when the last reference goes: in any thread, even in the middle of another request.
        """
        self._freed.append(vector)
        self._tell_freed()

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            self._break("it was closed")

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            with self._lock:
                if self._broken:
                    raise IslandError(
                        f"rank {self._rank} keeps its part of the outer state no longer: {self._broken}"
                    )
                try:
                    yield
                except BaseException as error:  # what was half said can't be gone on with
                    self._break(str(error) or type(error).__name__)
                    if not isinstance(error, OSError):
                        raise
                    raise IslandError(
                        f"the connection to rank {self._rank}, which keeps its part of the outer state, "
                        f"broke: {error}; restart the island"
                    ) from error
        finally:
            self._tell_freed()

    def _tell_freed(self) -> None:
        while self._freed and self._lock.acquire(blocking=False):
            try:
                while self._freed and not self._broken:
                    self._socket.sendall(HEADER.pack(FREE, self._freed.popleft(), 0, 0, 0))
                if self._broken:
                    self._freed.clear()
            except OSError as error:
                self._break(str(error))
            finally:
                self._lock.release()

    def _break(self, reason: str) -> None:
        self._broken = self._broken or reason
        self._socket.close()


class Keeper:
    """A host's part of the lead's vectors: a thread that serves until the lead closes the connection.

    Args:
        connection: owned from now on.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._parts: dict[int, bytearray] = {}
        connection.settimeout(None)  # the lead asks when it likes to
        self._thread = threading.Thread(target=self._run, name="lowcomm-keeper", daemon=True)
        self._thread.start()

    @property
    def held_bytes(self) -> int:
        """Of all vectors that the lead has not freed."""
        return sum(len(part) for part in list(self._parts.values()))

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the thread; whether it has come."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        header = bytearray(HEADER.size)
        try:
            with self._socket:
                while receive(self._socket, memoryview(header), or_end=True):
                    self._serve(*HEADER.unpack(header))
        except (OSError, IslandError, MemoryError) as error:
            logger.error("this rank keeps its part of the outer state no longer: %s", error)
        finally:
            self._parts.clear()

    def _serve(self, operation: int, vector: int, elements: int, offset: int, length: int) -> None:
        if operation == FREE:
            self._parts.pop(vector, None)
            return
        part = self._parts.get(vector)
        if part is None:
            part = self._parts[vector] = bytearray(FP32_BYTES * elements)
        if operation not in (READ, WRITE) or offset + length > len(part):
            raise IslandError(
                f"the lead asked for operation {operation} of bytes {offset} to {offset + length} out of "
                f"{len(part)}"
            )
        view = memoryview(part)[offset : offset + length]
        if operation == WRITE:
            receive(self._socket, view)
        else:
            self._socket.sendall(view)


def receive(connection: socket.socket, into: memoryview, *, or_end: bool = False) -> bool:
    """Fill `into`; False if the other side has ended the connection before the first byte.

    Args:
        or_end: the connection may end here.

    Raises:
        OSError: it broke, or ended elsewhere.
    """
    left = into
    while len(left):
        got = connection.recv_into(left)
        if got == 0:
            if or_end and len(left) == len(into):
                return False
            raise ConnectionResetError("the other side has ended it")
        left = left[got:]
    return True


class ShardedVector:
    """A vector of which this rank, the lead, holds the first part; see `Blank`."""

    def __init__(self, number: int, elements: int, links: Sequence[Link]) -> None:
        self._number, self._links = number, links
        ranks = len(links) + 1
        self._stops = [elements * (rank + 1) // ranks for rank in range(ranks)]
        self._own = torch.empty(self._stops[0], dtype=torch.float32, device="cpu")
        for link in links:
            weakref.finalize(self, link.free, number).atexit = False

    @property
    def elements(self) -> int:
        return self._stops[-1]

    def load(self, start: int = 0, stop: int | None = None) -> Tensor:
        """See `Vector`; a view of what lies on this rank, else a copy."""
        stop = self.elements if stop is None else min(stop, self.elements)
        if stop <= self._stops[0]:
            return self._own[start:stop]
        values = torch.empty(max(0, stop - start), dtype=torch.float32, device="cpu")
        for rank, first, low, high in self._ranges(start, stop):
            part = values[low - start : high - start]
            if rank == 0:
                part.copy_(self._own[low:high])
            else:
                kept = self._stops[rank] - first
                self._links[rank - 1].read(self._number, kept, FP32_BYTES * (low - first), bytes_of(part))
        return values

    @contextmanager
    def filling(self, start: int, stop: int) -> Iterator[Tensor]:
        """See `Blank`."""
        if stop <= self._stops[0]:
            yield self._own[start:stop]
            return
        values = torch.empty(stop - start, dtype=torch.float32, device="cpu")
        yield values
        self.fill(start, values)

    def fill(self, start: int, values: Tensor) -> None:
        """Copy `values` to the ranks that keep them, from `start` on."""
        for rank, first, low, high in self._ranges(start, start + values.numel()):
            part = values[low - start : high - start]
            if rank == 0:
                self._own[low:high] = part
            else:
                kept = self._stops[rank] - first
                self._links[rank - 1].write(self._number, kept, FP32_BYTES * (low - first), bytes_of(part))

    def _ranges(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """(rank, where its part starts, where the range in it starts, and stops), where that is not empty."""
        first = 0
        for rank, end in enumerate(self._stops):
            low, high = max(start, first), min(stop, end)
            if low < high:
                yield rank, first, low, high
            first = end


class ShardedVectors:
    """The lead's side; see `Vectors`.

    Args:
        links: to a rank of each other host, in order.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = tuple(links)
        self._numbers = count()

    def hold(self, values: Tensor) -> ShardedVector:
        """Copied to the hosts that keep it."""
        vector = self.empty(values.numel())
        vector.fill(0, values)
        return vector

    def empty(self, elements: int) -> ShardedVector:
        """See `Vectors`."""
        return ShardedVector(next(self._numbers), elements, self._links)

    def keep(self, vectors: int) -> None:
        """Nothing is kept."""

    def tidy(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """See `Vectors`."""
        for link in self._links:
            link.close()


def open_vectors(rank: int, keepers: Sequence[int], broadcast: Broadcast) -> ShardedVectors | None:
    """Connect the lead, rank 0, with a rank of each other host. Collective in the island.

    Args:
        keepers: these ranks, in order.
        broadcast: gives the lead's value to all ranks; `Island.broadcast`.

    Returns:
        On the lead what makes vectors; None elsewhere. On `keepers` a thread keeps their parts until the
        lead closes them.

    Raises:
        IslandError: a rank does not come, or the lead can't be reached.
    """
    if rank > 0:
        port, secret = broadcast(None)
        if rank in keepers:
            Keeper(_connect(rank, port, secret))
        return None
    try:
        server = _server_for_all()
    except OSError as error:
        raise IslandError(f"the island's lead rank can't listen for the other ranks: {error}") from error
    with server:
        secret = secrets.token_bytes(32)
        broadcast((server.getsockname()[1], secret))
        return ShardedVectors(_accept(server, keepers, secret))


def _server_for_all() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _connect(rank: int, port: int, secret: bytes) -> socket.socket:
    host = os.environ.get("MASTER_ADDR", LOOPBACK)  # torchrun's master is the host of rank 0
    try:
        connection = socket.create_connection((host, port), timeout=OPEN_S)
        _tune(connection)
        connection.sendall(HELLO.pack(secret, rank))
    except OSError as error:
        raise IslandError(
            f"rank {rank} can't reach the island's lead rank at {host}:{port}: {error}; all ports between "
            "the machines of an island have to be open"
        ) from error
    return connection


def _accept(server: socket.socket, keepers: Sequence[int], secret: bytes) -> list[Link]:
    links: dict[int, Link] = {}
    server.settimeout(OPEN_S)
    while len(links) < len(keepers):
        try:
            connection, address = server.accept()
        except OSError as error:
            missing = sorted(set(keepers) - set(links))
            raise IslandError(
                f"ranks {missing} did not connect to the island's lead rank within {OPEN_S:g} s: {error}"
            ) from error
        rank = _greeted(connection, secret)
        if rank is None or rank not in keepers or rank in links:
            logger.warning("a connection from %s, which is no rank of this island, was refused", address[0])
            connection.close()
        else:
            _tune(connection)
            links[rank] = Link(rank, connection)
    return [links[rank] for rank in sorted(links)]


def _greeted(connection: socket.socket, secret: bytes) -> int | None:
    hello = bytearray(HELLO.size)
    connection.settimeout(HELLO_S)
    try:
        receive(connection, memoryview(hello))
    except OSError:
        return None
    given, rank = HELLO.unpack(hello)
    return int(rank) if hmac.compare_digest(given, secret) else None


def _tune(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
