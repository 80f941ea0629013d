"""What is handed to p2pd: how much, and in which order."""

import asyncio
import os
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
from lowcomm.exchanges.swarm.uplink import Uplink
from tests.exchanges.kernel import connection_state
from tests.exchanges.networks import PATIENCE_S, network

MIB = 1 << 20


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
        connection = Told(connection_state(unsent=LEAST_PIECE_BYTES))
        async with backlog(connection) as held:
            wrote: list[int] = []
            writing = asyncio.create_task(write(held, 100, wrote.append))
            await asyncio.sleep(0.1)
            assert wrote == []
            connection.now = connection_state(
                unsent=LEAST_PIECE_BYTES - 1
            )  # room for a byte is room for a piece
            while not wrote:
                await asyncio.sleep(0.001)
            connection.now = connection_state(unsent=4 * MIB)
            await asyncio.sleep(0.1)
            assert len(wrote) < 100
            connection.now = connection_state()
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
        connection = Told(connection_state(unsent=waits - 1, rate=rate))
        async with backlog(connection) as held:
            message = held.next_message()
            assert await held.wait_room(message) == piece
            connection.now = connection_state(unsent=MOST_BYTES, rate=rate)
            more = asyncio.create_task(held.wait_room(message))
            await asyncio.sleep(0.1)
            assert not more.done()
            connection.now = connection_state(unsent=0, rate=rate)
            assert await more == piece

    asyncio.run(scenario())


def test_the_message_that_began_first_is_written_first() -> None:
    async def scenario() -> None:
        connection = Told(connection_state(unsent=MIB))
        async with backlog(connection) as held:
            wrote: list[int] = []
            writing = [asyncio.create_task(write(held, 8, wrote.append)) for _ in range(3)]
            await asyncio.sleep(0.05)
            connection.now = connection_state()
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
        connection = Told(connection_state(unsent=MIB))
        async with backlog(connection) as held:
            wrote: list[int] = []
            first, second, third = (asyncio.create_task(write(held, 2, wrote.append)) for _ in range(3))
            await asyncio.sleep(0.02)
            first.cancel()
            connection.now = connection_state()
            await second
            assert wrote[:2] == [2, 2]
            connection.now = connection_state(unsent=MIB)
            fourth = asyncio.create_task(write(held, 2, wrote.append))
            await asyncio.sleep(0.02)
            held.close()
            await asyncio.gather(third, fourth)
            await write(held, 2, wrote.append)

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
