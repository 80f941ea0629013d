"""An island on a machine whose disk and clock can be broken, as `lowcomm chaos` starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowcomm.chaos.machine import FLUSHED_S, STALL_IN, STALL_OUT, cut_power

ISLAND = """
import os, sys, time
from pathlib import Path
from lowcomm.chaos import machine
from lowcomm.clock import SystemClock
from lowcomm.storage.files import write_atomically

folder, state = Path(sys.argv[1]), Path(sys.argv[2])
machine.runpy.run_module = lambda *given, **more: None  # everything but the island itself
machine.main([str(state), "train"])
write_atomically(folder / "whole", b"whole")
(folder / "loose").write_bytes(b"loose")
with (folder / "ledger.jsonl").open("wb") as file:
    file.write(b"x" * 200)
with (folder / "tail").open("wb") as file:
    file.write(b"synced")
    file.flush()
    os.fsync(file.fileno())
    file.write(b" and not")
real = SystemClock().wall_s()
(state / machine.CLOCK).write_text("7200")
print(round(SystemClock().wall_s() - real, -2))
"""


def run_island(folder: Path, machine: Path) -> str:
    folder.mkdir()
    command = [sys.executable, "-c", ISLAND, str(folder), str(machine)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.strip()


def test_a_power_cut_takes_what_was_neither_synced_nor_written_long_ago(tmp_path: Path) -> None:
    folder, machine = tmp_path / "island", tmp_path / "machine"
    assert run_island(folder, machine) == "7200.0"
    (folder / "old").write_bytes(b"old")
    written_s = max(path.stat().st_mtime for path in folder.iterdir())
    os.utime(folder / "old", (written_s - 2 * FLUSHED_S, written_s - 2 * FLUSHED_S))
    cut_power(machine, folder, written_s + 0.1)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found == {"whole": b"whole", "tail": b"synced", "old": b"old", "ledger.jsonl": b"x" * 160}


BULK = """
import asyncio, sys
from pathlib import Path
from lowcomm.chaos import machine
from lowcomm.exchanges.base import Message
from lowcomm.exchanges.swarm.exchange import SwarmExchange
from lowcomm.outer.node import Node

state, mark, came = Path(sys.argv[1]), Path(sys.argv[1]) / sys.argv[2], []


async def note(self, peer, message):
    came.append(message.kind)


SwarmExchange.send = SwarmExchange.send_bulk = note
Node.on_bulk = note
machine.runpy.run_module = lambda *given, **more: None
machine.main([str(state), "train"])
calls = [SwarmExchange.send_bulk, Node.on_bulk, SwarmExchange.send]


async def scenario():
    mark.write_text("")
    kinds = ["out", "in", "control"]
    tasks = [asyncio.create_task(call(None, "x", Message(kind, {}))) for call, kind in zip(calls, kinds)]
    await asyncio.wait([task for task, kind in zip(tasks, kinds) if not mark.name.endswith(kind)])
    print(*sorted(came))
    mark.unlink()
    await asyncio.gather(*tasks)
    print(*sorted(came))


asyncio.run(scenario())
"""


@pytest.mark.parametrize(("mark", "passes"), [(STALL_OUT, "control in"), (STALL_IN, "control out")])
def test_bulk_is_held_up_one_way_while_control_messages_pass(tmp_path: Path, mark: str, passes: str) -> None:
    command = [sys.executable, "-c", BULK, str(tmp_path), mark]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == [passes, "control in out"]
