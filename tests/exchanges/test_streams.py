"""What an outgoing stream holds, and what it says of it."""

import asyncio
import socket
import sys

import pytest

from lowcomm.exchanges.swarm.backlog import LEAST_PIECE_BYTES, Backlog
from lowcomm.exchanges.swarm.connection import ConnectionState
from lowcomm.exchanges.swarm.streams import Outgoing
from lowcomm.exchanges.swarm.uplink import Uplink
from tests.exchanges.networks import PATIENCE_S
from tests.exchanges.test_backlog import Told

MIB = 1 << 20


async def _read(end: socket.socket, count: int) -> int:
    got = 0
    while got < count:
        got += len(await asyncio.get_running_loop().sock_recv(end, MIB))
    return got


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux says how large its buffers are")
def test_what_p2pd_does_not_take_waits_before_it_is_written() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        written = 0

        def count(size: int) -> None:
            nonlocal written
            written += size

        stream = Outgoing(reader, writer, count)
        tasks = set()
        stream.backlog = Backlog(
            Told(ConnectionState(0, 0, 1000, 0.1, 0.1)),
            Uplink(),
            lambda task: tasks.add(asyncio.ensure_future(task)),
        )
        head, payload = b"head", memoryview(bytes(MIB))
        sending = asyncio.create_task(stream.send(head, payload))
        await asyncio.sleep(0.2)
        assert LEAST_PIECE_BYTES <= written <= 4 * LEAST_PIECE_BYTES
        assert stream.pending_bytes == len(head) + MIB
        async with asyncio.timeout(PATIENCE_S):
            await _read(theirs, len(head) + MIB)
            await sending
        assert written == len(head) + MIB
        assert stream.pending_bytes == 0
        writer.close()
        theirs.close()

    asyncio.run(scenario())
