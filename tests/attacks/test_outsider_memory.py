"""What a stranger can make an honest peer hold: the memory of a real process, under floods."""

import asyncio
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowcomm import exchanges
from lowcomm.clock import SystemClock
from lowcomm.exchanges import Message
from lowcomm.exchanges.frames import encode_frame
from lowcomm.exchanges.swarm.addresses import group_by_peer
from lowcomm.exchanges.swarm.directory import pack_value, signed_bytes
from lowcomm.exchanges.swarm.identity import Identity
from lowcomm.exchanges.swarm.link import CONTROL, STREAM_NAME
from lowcomm.exchanges.swarm.links import MAX_STREAMS_PER_LINK, MAX_UNOPENED
from lowcomm.exchanges.swarm.streams import PREAMBLE, Verdict
from tests.exchanges.networks import PATIENCE_S, RUN, Recorder
from tests.exchanges.test_swarm import Stranger

pytestmark = pytest.mark.processes
LIMIT_BYTES = 100 << 20


def header(body_bytes: int, payload_bytes: int) -> bytes:
    return struct.pack("!2sBBII", b"LC", 1, 0, body_bytes, payload_bytes)


def opening(channel: int) -> bytes:
    body = {"run": RUN, "channel": channel, "token": "t", "answer": ""}
    return encode_frame(Message("link.open", body))[0]  # type: ignore[arg-type]


class Victim:
    """The process; `address` joins it."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.attacks.victim", RUN]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        ((self.id, self.addresses),) = group_by_peer([self.address], RUN).items()
        self.normal_bytes = self.memory_bytes()

    def memory_bytes(self) -> int:
        """Most resident memory so far, of python alone: p2pd's is libp2p's own affair."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) << 10

    async def answers(self) -> None:
        """An honest newcomer gets a link; an error tells that it doesn't."""
        newcomer = exchanges.swarm(run_id=RUN, initial_peers=[self.address])
        try:
            await newcomer.start(Recorder())
            assert newcomer.connected() == {self.id}
        finally:
            await newcomer.close()

    def close(self) -> None:
        self._process.communicate("")
        assert self._process.returncode == 0


@pytest.fixture
def victim() -> Iterator[Victim]:
    victim = Victim()
    yield victim
    victim.close()


async def open_stream(
    stranger: Stranger, victim: Victim
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await stranger.node.open_stream(victim.id, STREAM_NAME, PATIENCE_S)
    return reader, writer


async def say(stranger: Stranger, victim: Victim, channel: int, data: bytes) -> bytes:
    """Open a stream, say `data` on it and leave it open; the verdict, or nothing."""
    reader, writer = await open_stream(stranger, victim)
    try:
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.readexactly(len(PREAMBLE)) == PREAMBLE
            writer.write(opening(channel))
            verdict = await reader.read(1)
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        return b""
    return verdict


def test_frames_that_are_announced_and_never_come_fill_nothing(victim: Victim, tmp_path: Path) -> None:
    """Oversized headers, and slow-loris on control and on bulk: the largest frames, a byte short."""

    async def scenario() -> None:
        stranger = await Stranger.start(tmp_path, victim.id, victim.addresses)
        try:
            slow = header(1 << 10, 4 << 20) + bytes((1 << 20) - 1)
            assert await say(stranger, victim, CONTROL, b"") == bytes([Verdict.OK])
            verdicts = [await say(stranger, victim, k, slow) for k in range(2 * MAX_STREAMS_PER_LINK)]
            assert verdicts.count(bytes([Verdict.OK])) < MAX_STREAMS_PER_LINK
            for size in (2**32 - 1, 4 << 20):
                await say(stranger, victim, CONTROL, header(size, size))
            await victim.answers()
        finally:
            await stranger.close()
        assert victim.memory_bytes() - victim.normal_bytes < LIMIT_BYTES

    asyncio.run(scenario())


def test_streams_that_say_nothing_keep_nobody_out(victim: Victim, tmp_path: Path) -> None:
    async def scenario() -> None:
        stranger = await Stranger.start(tmp_path, victim.id, victim.addresses)
        held = [await open_stream(stranger, victim) for _ in range(MAX_UNOPENED + 16)]
        try:
            await victim.answers()
        finally:
            for _, writer in held:
                writer.transport.abort()
            await stranger.close()
        assert victim.memory_bytes() - victim.normal_bytes < LIMIT_BYTES

    asyncio.run(scenario())


def test_junk_records_with_a_long_life_are_bounded(victim: Victim, tmp_path: Path) -> None:
    """Signed, as large as can be, of identities that were made for it, for as long as can be and longer."""

    async def scenario() -> None:
        stranger = await Stranger.start(tmp_path, victim.id, victim.addresses)
        try:
            await stranger.node.start_dht(f"lowcomm/1/{RUN}", lambda *_: True)
            await stranger.node.meet(victim.id)
            now_s = SystemClock().wall_s()
            for number in range(120):
                sybil, record = Identity.generate(), bytes(16_000)
                until_s = now_s + (1_000.0 if number % 4 else 86_400.0 * 365)
                signature = sybil.sign("directory", signed_bytes(RUN, record, until_s))
                value = pack_value(record, signature)
                await stranger.node.store(f"lowcomm/1/{RUN}", sybil.peer_id, value, until_s)
            await victim.answers()
        finally:
            await stranger.close()
        assert victim.memory_bytes() - victim.normal_bytes < LIMIT_BYTES

    asyncio.run(scenario())
