"""What the kernel says of p2pd's connections, and what it is told."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lowcomm.exchanges import Message
from lowcomm.exchanges.swarm.connection import DaemonConnection
from lowcomm.exchanges.swarm.exchange import SwarmExchange
from tests.exchanges.networks import network

MIB = 1 << 20
UNLIMITED = (1 << 64) - 1
SENDER = """
import socket, struct, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.setblocking(False)
sent = 0
try:
    while True:
        sent += connection.send(bytes(65536))
except BlockingIOError:
    print(sent, flush=True)
for _ in sys.stdin:
    print(struct.unpack("Q", connection.getsockopt(socket.SOL_SOCKET, 47, 8))[0], flush=True)
"""
BBR_SENDER = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
try:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")
except OSError:
    print("none", flush=True)
else:
    print("bbr", flush=True)
for _ in sys.stdin:
    bandwidth = connection.getsockopt(socket.IPPROTO_TCP, 26, 8)
    print(int.from_bytes(bandwidth, "little"), flush=True)
    connection.sendall(bytes(1 << 20))
"""


class Child:
    """A process with a connection to this one, that does something with it for each line it is sent."""

    def __init__(self, script: str) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        port = self._server.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.accepted, _ = self._server.accept()
        self.connection = DaemonConnection(self.process.pid, [("127.0.0.1", port)])

    def ask(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def receive(self, size: int) -> None:
        while size > 0:
            size -= len(self.accepted.recv(min(size, MIB)))

    def end(self) -> None:
        self.process.communicate()
        self.accepted.close()
        self._server.close()


@contextmanager
def child(script: str) -> Iterator[Child]:
    if not sys.platform.startswith("linux"):
        pytest.skip("asks the Linux kernel")
    made = Child(script)
    try:
        yield made
    finally:
        made.end()


def test_the_kernel_tells_what_a_child_has_not_sent_and_paces_it() -> None:
    with child(SENDER) as sender:
        taken = int(sender.answer())
        before = sender.connection.look(0.0)
        if before is None:
            pytest.skip("this container forbids pidfd_getfd")
        assert 0 < before.unsent_bytes < taken
        assert before.acked_bytes + before.unsent_bytes <= taken
        for paced in (3 * MIB, float("inf")):
            sender.connection.pace(paced)
            sender.connection.look(0.0)
            sender.ask()
            assert int(sender.answer()) == min(paced, UNLIMITED)
        sender.receive(taken)
        after = sender.connection.look(0.0)
        assert after is not None
        assert after.unsent_bytes == 0
    assert sender.connection.look(0.0) is None  # it has ended


def test_bbr_of_a_paced_connection_is_begun_anew_before_it_measures() -> None:
    with child(BBR_SENDER) as sender:
        if sender.answer() != "bbr" or sender.connection.look(0.0) is None:
            pytest.skip("this system has no BBR, or the container forbids pidfd_getfd")

        def measured() -> bool:
            """Whether BBR has measured anything since it began; then some more is sent."""
            sender.ask()
            sender.receive(MIB)
            return sender.answer() != "0"

        assert not measured()
        for now_s, paced, begun_anew in (
            (100.0, float("inf"), False),
            (200.0, 3e7, True),  # each less than it sends
            (204.0, 2e7, False),
            (205.0, 1e7, True),
            (300.0, 1e12, False),  # more than it sends
        ):
            sender.connection.pace(paced)
            sender.connection.look(now_s)
            assert measured() is not begun_anew


def test_p2pd_s_own_connections_are_found_over_tcp() -> None:
    async def scenario() -> None:
        async with network("swarm", 3) as (a, b, c):
            assert isinstance(a.exchange, SwarmExchange)
            await a.exchange.send_bulk(b.id, Message("data", {}, bytes(MIB)))
            await b.heard.until(lambda: len(b.heard.bulk) == 1)
            links = a.exchange._links
            assert links is not None
            to_b, to_c = [await links.connection_to(peer.id) for peer in (b, c)]
            assert to_b is not None
            assert to_c is not None
            if to_b.look(0.0) is None:
                pytest.skip("this container forbids pidfd_getfd")
            acked = 0
            while acked <= MIB:  # the last acknowledgement may still be on its way
                seen = to_b.look(0.0)
                assert seen is not None
                acked = seen.acked_bytes
                await asyncio.sleep(0.01)
            other = to_c.look(0.0)
            assert other is not None
            assert other.acked_bytes < MIB

    asyncio.run(scenario())
