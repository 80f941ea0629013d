"""The emulated WAN carries packets as networks do."""

import os
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from lowcomm.chaos.network import SCRIPT, Network

PACKETS = 800
"""Of 1,000 bytes: less than an uplink's queue takes."""
RECEIVER = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
    receiver.bind(("", 5000))
    print("ready", flush=True)
    while True:
        print(receiver.recv(2000)[0], flush=True)
"""
SENDER = """
import socket, sys
number, packets = map(int, sys.argv[1:])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    print("ready", flush=True)
    for _ in sys.stdin:
        for _ in range(packets):
            sender.sendto(bytes([number]) * 1000, ("10.77.0.3", 5000))
        print("sent", flush=True)
"""


def _run(network: Network, number: int, code: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*network.enter(number), sys.executable, "-c", code, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _send(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert _line(process) == "sent"


@pytest.mark.processes
def test_what_waits_at_one_uplink_does_not_hold_up_what_others_send() -> None:
    if os.geteuid() or not all(map(shutil.which, ["ip", "gcc"])):
        pytest.skip("needs network namespaces: root, ip and gcc")
    with Network(3) as network:
        subprocess.run([SCRIPT, "set", "4", "0"], check=True)
        receiver = _run(network, 2, RECEIVER)
        flood, other = _run(network, 0, SENDER, "0", str(PACKETS)), _run(network, 1, SENDER, "1", "1")
        try:
            assert [_line(process) for process in (receiver, flood, other)] == ["ready"] * 3
            _send(flood)
            _send(other)
            came = [int(_line(receiver)) for _ in range(PACKETS + 1)]
        finally:
            for process in (receiver, flood, other):
                process.kill()
                process.communicate()
    assert Counter(came) == {0: PACKETS, 1: 1}
    assert came.index(1) < PACKETS // 2
