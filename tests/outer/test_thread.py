"""Workers that give way."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lowcomm.outer.thread import NICENESS, give_way

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="niceness of threads")

ALREADY_NICE = """
import os
from concurrent.futures import ThreadPoolExecutor
from lowcomm.outer.thread import give_way
os.nice(17)
print(ThreadPoolExecutor(1, initializer=give_way).submit(os.getpriority, os.PRIO_PROCESS, 0).result())
"""


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_a_worker_gives_way_to_the_thread_that_started_it() -> None:
    before = niceness()
    with ThreadPoolExecutor(1, initializer=give_way) as pool:
        assert pool.submit(niceness).result() == min(19, before + NICENESS)
    assert niceness() == before


def test_a_process_that_is_nice_already_stays_within_bounds() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALREADY_NICE], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) == 19
