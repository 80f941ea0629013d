"""What is handed to p2pd: how much, in which order, and what the kernel says of its connections."""

import asyncio
import os
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from lowcomm.errors import PeerUnreachableError
from lowcomm.exchanges import Message
from lowcomm.exchanges.swarm.backlog import (
    LEAST_PAUSE_S,
    LEAST_PIECE_BYTES,
    MOST_BYTES,
    MOST_PIECE_BYTES,
    Backlog,
)
from lowcomm.exchanges.swarm.connection import ConnectionState, DaemonConnection
from lowcomm.exchanges.swarm.discovery import GAIN, LEAST_BYTES
from lowcomm.exchanges.swarm.exchange import SwarmExchange
from lowcomm.exchanges.swarm.uplink import (
    FULL,
    LEAST_ROOM,
    MOST_ROOM,
    ROOM,
    SEVERAL,
    TICK_S,
    UNQUEUED,
    WANTED,
    Uplink,
    shares,
)
from tests.exchanges.networks import PATIENCE_S, network

MIB = 1 << 20
LOOK_S = 0.05
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


def state(
    *, unsent: int = 0, acked: int = 0, rate: int = 1000, trip_s: float = 0.1, least_s: float = 0.1
) -> ConnectionState:
    return ConnectionState(unsent, acked, rate, trip_s, least_s)


class Told(DaemonConnection):
    """A connection of which the test says what the kernel would."""

    def __init__(self, now: ConnectionState | None) -> None:
        super().__init__(os.getpid(), [])
        self.now, self.paced = now, 0.0

    def look(self, now_s: float) -> ConnectionState | None:
        return self.now

    def pace(self, bytes_per_s: float) -> None:
        self.paced = bytes_per_s


@asynccontextmanager
async def backlog(connection: DaemonConnection) -> AsyncIterator[Backlog]:
    tasks: set[asyncio.Task[None]] = set()

    def spawn(coroutine: Coroutine[Any, Any, None]) -> None:
        tasks.add(asyncio.get_running_loop().create_task(coroutine))

    made = Backlog(connection, Uplink(), spawn)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def write(to: Backlog, pieces: int, wrote: Callable[[int], None]) -> None:
    """A message of some pieces, as `Outgoing` sends it."""
    message = to.next_message()
    for _ in range(pieces):
        await to.wait_room(message)
        wrote(message)


def test_no_more_is_written_than_the_kernel_has_room_for() -> None:
    async def scenario() -> None:
        connection = Told(state(unsent=LEAST_PIECE_BYTES))
        async with backlog(connection) as held:
            wrote: list[int] = []
            writing = asyncio.create_task(write(held, 100, wrote.append))
            await asyncio.sleep(0.1)
            assert wrote == []
            connection.now = state(unsent=LEAST_PIECE_BYTES - 1)  # room for a byte is room for a piece
            while not wrote:
                await asyncio.sleep(0.001)
            connection.now = state(unsent=4 * MIB)
            await asyncio.sleep(0.1)
            assert len(wrote) < 100
            connection.now = state()
            await writing
            assert len(wrote) == 100

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("rate", "piece", "waits"),
    [
        (1 << 40, MOST_PIECE_BYTES, MOST_BYTES),
        (10 * MIB, int(LEAST_PAUSE_S * 10 * MIB), int(2 * LEAST_PAUSE_S * 10 * MIB)),
        (1000, LEAST_PIECE_BYTES, LEAST_PIECE_BYTES),
    ],
)
def test_the_slower_the_link_the_less_waits_for_it(rate: int, piece: int, waits: int) -> None:
    async def scenario() -> None:
        connection = Told(state(unsent=waits - 1, rate=rate))
        async with backlog(connection) as held:
            message = held.next_message()
            assert await held.wait_room(message) == piece
            connection.now = state(unsent=MOST_BYTES, rate=rate)
            more = asyncio.create_task(held.wait_room(message))
            await asyncio.sleep(0.1)
            assert not more.done()
            connection.now = state(unsent=0, rate=rate)
            assert await more == piece

    asyncio.run(scenario())


def test_the_message_that_began_first_is_written_first() -> None:
    async def scenario() -> None:
        connection = Told(state(unsent=MIB))
        async with backlog(connection) as held:
            wrote: list[int] = []
            writing = [asyncio.create_task(write(held, 8, wrote.append)) for _ in range(3)]
            await asyncio.sleep(0.05)
            connection.now = state()
            await asyncio.gather(*writing)
            assert wrote == [1] * 8 + [2] * 8 + [3] * 8

    asyncio.run(scenario())


def test_where_nothing_is_known_nothing_is_held_back() -> None:
    async def scenario() -> None:
        async with backlog(Told(None)) as held:
            wrote: list[int] = []
            await write(held, 1_000, wrote.append)
            assert len(wrote) == 1_000

    asyncio.run(scenario())


def test_a_writer_that_gives_up_and_a_link_that_ends_hold_nobody() -> None:
    async def scenario() -> None:
        connection = Told(state(unsent=MIB))
        async with backlog(connection) as held:
            wrote: list[int] = []
            first, second, third = (asyncio.create_task(write(held, 2, wrote.append)) for _ in range(3))
            await asyncio.sleep(0.02)
            first.cancel()
            connection.now = state()
            await second
            assert wrote[:2] == [2, 2]
            connection.now = state(unsent=MIB)
            fourth = asyncio.create_task(write(held, 2, wrote.append))
            await asyncio.sleep(0.02)
            held.close()
            await asyncio.gather(third, fourth)
            await write(held, 2, wrote.append)

    asyncio.run(scenario())


class BusyUplink(Uplink):
    """Of which the test says what is carried over connections 0, 1, ..."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.acked: defaultdict[int, float] = defaultdict(float)

    def carry(self, seconds: float, mib_s: list[float], *, trip_s: float = 0.1, pause_s: float = 0.0) -> None:
        self.now_s += pause_s
        for _ in range(round(seconds / LOOK_S)):
            for path, rate in enumerate(mib_s):
                self.heard(path, state(acked=int(self.acked[path]), trip_s=trip_s), self.now_s)
                self.acked[path] += LOOK_S * rate * MIB
            self.now_s += LOOK_S


HALF_WAY_S = 0.1 * (UNQUEUED + FULL) / 2


@pytest.mark.parametrize(
    ("trip_s", "room"),
    [(0.101, MOST_ROOM), (HALF_WAY_S, (MOST_ROOM + LEAST_ROOM) / 2), (0.2, LEAST_ROOM), (0.4, LEAST_ROOM)],
)
def test_connections_share_what_all_have_carried(trip_s: float, room: float) -> None:
    for rates, several in (([10.0], 1.0), ([5.0, 5.0], SEVERAL)):
        uplink = BusyUplink()
        uplink.carry(2.7, rates, trip_s=trip_s)
        for path, rate in enumerate(rates):
            assert uplink.rate(path) == pytest.approx(several * room * rate * MIB, rel=0.02)


def test_what_an_uplink_carries_is_found_by_sending_twice_as_much_at_a_time() -> None:
    uplink = BusyUplink()
    assert uplink.rate(0) == float("inf")
    uplink.carry(0.3, [1.0, 1.0])
    assert uplink.rate(0) == pytest.approx(LEAST_BYTES / 0.1 / 2)
    uplink.carry(0.3, [6.0, 6.0])
    assert uplink.rate(0) == pytest.approx(GAIN * 6 * MIB, rel=0.02)
    uplink.carry(0.3, [12.0, 12.0])
    assert uplink.rate(1) == pytest.approx(GAIN * 12 * MIB, rel=0.02)
    uplink.carry(0.3, [16.0, 16.0])
    uplink.carry(0.3, [16.0, 16.0], trip_s=0.15)
    assert uplink.rate(0) == pytest.approx(0.875 * 16 * MIB, rel=0.05)  # less, so that the queue empties
    uplink.carry(0.2, [16.0, 16.0])
    assert uplink.rate(0) == pytest.approx(SEVERAL * MOST_ROOM * 16 * MIB, rel=0.05)


def test_an_uplink_that_carries_more_than_it_did_is_found_to() -> None:
    uplink = BusyUplink()
    uplink.carry(3.0, [2.0])
    assert uplink.rate(0) == pytest.approx(MOST_ROOM * 2 * MIB, rel=0.02)
    uplink.carry(1.0, [20.0])
    assert uplink.rate(0) == pytest.approx(GAIN * 20 * MIB, rel=0.02)
    uplink.carry(0.3, [20.0], trip_s=0.15)
    uplink.carry(1.0, [20.0], trip_s=0.11)
    assert uplink.rate(0) == pytest.approx(MOST_ROOM * 20 * MIB, rel=0.02)


def test_where_ever_more_arrives_long_round_trips_are_no_queue() -> None:
    for growth in (1.25, 1.0):
        uplink, rate = BusyUplink(), 10.0
        for _ in range(16):
            uplink.carry(LOOK_S, [rate], trip_s=0.13)
            rate *= growth
        lately = sum(rate * MIB / growth**before for before in (2, 3)) / 2
        less = 1.0 if growth > 1 else 0.925
        assert uplink.rate(0) == pytest.approx(less * lately, rel=0.02)


def test_a_link_that_is_always_queued_is_reckoned_with_in_the_end() -> None:
    uplink = BusyUplink()
    for _ in range(8):  # so short bursts, and so often, that nothing is found by looking
        uplink.carry(LOOK_S, [1.0], trip_s=0.4)
        uplink.rests(0, uplink.now_s)
        uplink.now_s += 4 * LOOK_S
        uplink.acked[0] += 4 * LOOK_S * MIB
    assert uplink.rate(0) == pytest.approx(MIB, rel=0.02)


def test_of_a_few_packets_that_are_acknowledged_late_nothing_is_concluded() -> None:
    uplink = BusyUplink()
    uplink.carry(0.9, [0.1, 0.1, 0.1], trip_s=0.14)
    assert uplink.rate(0) == pytest.approx(LEAST_BYTES / 0.1 / 3)


def test_a_stalled_link_is_not_taken_for_one_that_carries_nothing() -> None:
    uplink = BusyUplink()
    uplink.carry(1.0, [0.0], trip_s=0.4)
    assert uplink.rate(0) == pytest.approx(LEAST_BYTES / 0.1)


def test_what_arrived_over_a_connection_that_has_ended_is_not_taken_back() -> None:
    uplink = BusyUplink()
    uplink.carry(3.0, [10.0])
    uplink.acked[0] /= 2
    uplink.carry(1.0, [10.0])
    assert uplink.rate(0) == pytest.approx(MOST_ROOM * 10 * MIB, rel=0.06)


def test_a_queue_is_answered_at_once() -> None:
    uplink = BusyUplink()
    uplink.carry(3.0, [5.0, 5.0])
    assert uplink.rate(0) == pytest.approx(SEVERAL * MOST_ROOM * 5 * MIB, rel=0.02)
    uplink.carry(TICK_S / 2, [5.0, 5.0], trip_s=0.2)
    assert uplink.rate(0) == pytest.approx(SEVERAL * LEAST_ROOM * 5 * MIB, rel=0.02)


def test_after_a_pause_no_more_is_sent_than_was_carried() -> None:
    for trip_s in (0.101, 0.4):
        uplink = BusyUplink()
        uplink.carry(3.0, [2.0, 8.0], trip_s=trip_s)
        uplink.carry(0.1, [2.0, 8.0], pause_s=5.0)
        equal, fair = SEVERAL * ROOM * 5, SEVERAL * ROOM * 10 - WANTED * 2
        assert [uplink.rate(path) / MIB for path in range(2)] == pytest.approx([equal, fair], rel=0.02)


def test_the_share_of_a_connection_that_ended_is_for_the_others() -> None:
    uplink = BusyUplink()
    uplink.carry(3.0, [3.0, 3.0, 3.0], trip_s=0.13)
    uplink.gone(2)
    assert [uplink.rate(path) / MIB for path in range(2)] == pytest.approx(
        [SEVERAL * ROOM * 4.5] * 2, rel=0.02
    )
    uplink.gone(1)
    assert uplink.rate(0) == pytest.approx(ROOM * 9 * MIB, rel=0.02)
    uplink.gone(0)
    assert uplink.rate(0) == float("inf")


def test_of_short_bursts_nothing_is_concluded() -> None:
    uplink, acked = Uplink(), 0
    for burst in range(100):  # 0.1 of every 0.3 s, as training with short intervals sends
        for look in range(10):
            now_s = 0.3 * burst + 0.01 * look
            uplink.heard(0, state(acked=acked, trip_s=0.001, least_s=0.0001), now_s)
            acked += MIB
        uplink.rests(0, now_s)
        assert uplink.rate(0) >= LEAST_BYTES / 0.0001


def test_round_trips_of_a_busy_processor_are_no_queue() -> None:
    uplink = Uplink()
    now_s = 0.0
    while now_s < 3.0:
        uplink.heard(0, state(acked=int(now_s * MIB), trip_s=0.015, least_s=0.0001), now_s)
        now_s += 0.05
    assert uplink.rate(0) == pytest.approx(MOST_ROOM * MIB, rel=0.02)


def test_a_queue_that_sending_less_does_not_empty_is_not_answered_with_less_and_less() -> None:
    uplink, found = BusyUplink(), []
    uplink.carry(1.5, [5.0, 5.0], trip_s=0.4)
    for _ in range(40):
        uplink.carry(TICK_S, [5.0, 5.0], trip_s=0.4)
        found.append(uplink.rate(0) / MIB)
    less = [rate for rate in found if rate == pytest.approx(SEVERAL * 5, rel=0.05)]
    assert 10 <= len(less) <= len(found) - 10
    assert all(rate == pytest.approx(5, rel=0.05) for rate in found if rate not in less)


def test_what_a_slow_receiver_leaves_is_for_the_others() -> None:
    uplink, total = BusyUplink(), 10 * SEVERAL * ROOM
    uplink.carry(3.0, [0.5, 4.75, 4.75], trip_s=0.13)
    slow, *others = (uplink.rate(path) / MIB for path in range(3))
    assert slow == pytest.approx(total / 3, rel=0.02)
    assert others == pytest.approx([(total - WANTED * 0.5) / 2] * 2, rel=0.02)


def test_shares_are_max_min_fair() -> None:
    assert shares(9.0, {"a": 5.0, "b": 5.0, "c": 5.0}) == {"a": 3.0, "b": 3.0, "c": 3.0}
    assert shares(9.0, {"a": 1.0, "b": 9.0, "c": 9.0}) == {"a": 3.0, "b": 4.0, "c": 4.0}
    assert shares(9.0, {"a": 9.0, "b": 2.0, "c": 1.0}) == {"a": 6.0, "b": 4.0, "c": 3.0}
    assert shares(9.0, {"a": 0.0}) == {"a": 9.0}


def test_pauses_and_slow_traffic_do_not_lower_the_rate_of_an_uplink() -> None:
    uplink = BusyUplink()
    uplink.carry(3.0, [10.0], trip_s=0.13)
    uplink.carry(3.0, [1.0], pause_s=60.0, trip_s=0.13)
    assert uplink.rate(0) == pytest.approx(ROOM * 10 * MIB, rel=0.02)
    uplink.carry(60.0, [1.0], pause_s=27.0, trip_s=0.13)  # so long that it is the uplink
    assert uplink.rate(0) == pytest.approx(ROOM * MIB, rel=0.02)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the Linux kernel")
def test_bbr_of_a_paced_connection_is_begun_anew_before_it_measures() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with subprocess.Popen(
            [sys.executable, "-c", BBR_SENDER, str(server.getsockname()[1])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            accepted, _ = server.accept()

            def measured() -> bool:
                """Whether BBR has measured anything since it began; then the child sends some more."""
                assert child.stdin is not None
                assert child.stdout is not None
                child.stdin.write(b"\n")
                child.stdin.flush()
                got = 0
                while got < MIB:
                    got += len(accepted.recv(MIB))
                return child.stdout.readline() != b"0\n"

            kind = child.stdout.readline()
            connection = DaemonConnection(child.pid, [("127.0.0.1", server.getsockname()[1])])
            if kind != b"bbr\n" or connection.look(0.0) is None:
                child.kill()
                pytest.skip("this system has no BBR, or the container forbids pidfd_getfd")
            assert not measured()
            for now_s, paced, begun_anew in (
                (100.0, float("inf"), False),
                (200.0, 3e7, True),  # each less than it sends
                (204.0, 2e7, False),
                (205.0, 1e7, True),
                (300.0, 1e12, False),  # more than it sends
            ):
                connection.pace(paced)
                connection.look(now_s)
                assert measured() is not begun_anew
            child.stdin.close()
        accepted.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the Linux kernel")
def test_the_kernel_tells_what_a_child_has_not_sent_and_paces_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with subprocess.Popen(
            [sys.executable, "-c", SENDER, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            accepted, _ = server.accept()
            taken = int(child.stdout.readline())
            connection = DaemonConnection(child.pid, [("127.0.0.1", port)])
            before = connection.look(0.0)
            if before is None:
                child.kill()
                pytest.skip("this container forbids pidfd_getfd")
            assert 0 < before.unsent_bytes < taken
            assert before.acked_bytes + before.unsent_bytes <= taken
            connection.pace(3 * MIB)
            connection.look(0.0)
            child.stdin.write(b"\n")
            child.stdin.flush()
            assert int(child.stdout.readline()) == 3 * MIB
            connection.pace(float("inf"))
            connection.look(0.0)
            child.stdin.write(b"\n")
            child.stdin.flush()
            assert int(child.stdout.readline()) > 1 << 40
            got = 0
            while got < taken:
                got += len(accepted.recv(MIB))
            after = connection.look(0.0)
            assert after is not None
            assert after.unsent_bytes == 0
            child.stdin.close()
        accepted.close()
        assert connection.look(0.0) is None  # it has ended


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


def test_a_fault_in_the_background_takes_the_link_down(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with network("swarm", 2) as (a, b):

            def look(self: DaemonConnection, now_s: float) -> None:
                raise ArithmeticError("made up")

            monkeypatch.setattr(DaemonConnection, "look", look)
            async with asyncio.timeout(PATIENCE_S):
                with pytest.raises(PeerUnreachableError, match=r"ArithmeticError.*made up"):
                    await a.exchange.send_bulk(b.id, Message("data", {}, bytes(MIB)))

    asyncio.run(scenario())
