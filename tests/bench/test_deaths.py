"""`lowcomm bench deaths` as a user runs it, in a small form; no figure of time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lowcomm.bench.deaths import choose
from lowcomm.rounds.roster import leader_order
from lowcomm.types import PeerId

TIMEOUT_S = 280.0
PAYLOAD_BYTES = 4 * 2**20


@pytest.mark.processes
@pytest.mark.parametrize("stop", ["SIGKILL", "SIGSTOP"])
def test_the_others_commit_the_round_in_which_one_stops(tmp_path: Path, stop: str) -> None:
    out = tmp_path / "deaths.json"
    options = ["--parts", "leader", "--signals", stop, "--payload-mib", "4", "--warm-rounds", "1"]
    command = [sys.executable, "-m", "lowcomm", "bench", "deaths", *options, "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    (death,) = json.loads(out.read_text())["deaths"]["deaths"]
    assert (death["part"], death["stop"]) == ("leader", stop)
    # the two thirds that others reduce had not all left, so no mean was whole
    assert PAYLOAD_BYTES / 4 <= death["sent_bytes"] < PAYLOAD_BYTES * 2 / 3
    assert death["attempts"] >= 2
    assert death["participants"] == 2
    assert death["lost_steps"] == 0
    assert death["equal"] is True


def test_each_part_is_the_one_that_the_round_gives() -> None:
    peers = [PeerId(name) for name in ("a", "b", "c")]
    for first in range(1, 20):
        for part in ("participant", "leader", "bootstrap"):
            outer_step, victim = choose(peers, part, first)
            leader = leader_order(peers, "bench", 0, outer_step)[0]
            assert outer_step >= first
            assert (peers[victim] == leader) == (part == "leader")
            assert (victim == 0) == (part == "bootstrap")
