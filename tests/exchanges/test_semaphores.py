"""hivemind on a host that has no semaphores."""

import subprocess
import sys
from pathlib import Path

WITHOUT = """
import _multiprocessing, asyncio, errno, multiprocessing, os

class NoSemaphore(_multiprocessing.SemLock):
    def __new__(cls, *arguments):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))  # as with /dev/shm mounted read-only

_multiprocessing.SemLock = NoSemaphore
lock = multiprocessing.Lock
from lowcomm import exchanges
from tests.exchanges.networks import Recorder, network

async def scenario():
    async with network("swarm") as (a, b):
        await a.exchange.publish(b"record", 60.0)
        assert a.exchange.connected() == {b.id}

asyncio.run(scenario())
assert multiprocessing.Lock == lock
"""


def test_a_swarm_needs_no_shared_memory() -> None:
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT], cwd=root, capture_output=True, text=True, timeout=200, check=False
    )
    assert found.returncode == 0, found.stderr
