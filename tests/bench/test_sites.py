"""The benches that are started once on each host, as a user starts them, here on one host."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

TIMEOUT_S = 280.0
COMMON = ["--run-id", "bench-test", "--islands", "2", "--payload-mib", "0.1", "--deadline-s", "60"]
LISTEN = ["--listen", "/ip4/127.0.0.1/tcp/0"]


def run_two(folder: Path, part: str, *options: str) -> list[dict]:
    """Both islands' JSON."""
    command = [sys.executable, "-m", "lowcomm", "bench", part, *COMMON, *LISTEN, *options]
    address = folder / "address"
    processes = []
    try:
        first = ["--address-file", str(address), "--json", str(folder / "0.json")]
        processes.append(subprocess.Popen([*command, *first], stdout=subprocess.DEVNULL))
        ends_s = time.monotonic() + TIMEOUT_S
        while not address.exists():
            assert processes[0].poll() is None, "the first island ended before it wrote its address"
            assert time.monotonic() < ends_s, "no address"
            try:
                processes[0].wait(0.05)
            except subprocess.TimeoutExpired:
                pass
        second = ["--initial-peers", address.read_text().strip(), "--json", str(folder / "1.json")]
        processes.append(subprocess.Popen([*command, *second], stdout=subprocess.DEVNULL))
        assert [process.wait(TIMEOUT_S) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(2)]


@pytest.mark.processes
def test_rounds_commit_and_agree(tmp_path) -> None:
    results = run_two(tmp_path, "round", "--rounds", "3", "--codec", "fp32")
    for result in results:
        assert result["join_s"] > 0
        assert [x["committed"] for x in result["rounds"]] == [True] * 3
        assert all(seconds > 0 for seconds in result["heartbeat_round_trips_s"])
        assert all(x["seconds"] > 0 and x["bytes_received"] > 50_000 for x in result["rounds"])
    assert [x["digest"] for x in results[0]["rounds"]] == [x["digest"] for x in results[1]["rounds"]]


@pytest.mark.processes
@pytest.mark.parametrize("mode", ["blocking", "streaming"])
def test_utilisation_adds_up(tmp_path, mode) -> None:
    # more than ten fragments, of unequal sizes
    schedule = ["--step-s", "0.01", "--steps", "24", "--inner-steps", "12", "--num-fragments", "12"]
    schedule += ["--delay", "2"]
    for result in run_two(tmp_path, "utilisation", *schedule, "--codec", "int8", "--mode", mode):
        assert result["compute_s"] == pytest.approx(0.24)
        assert result["wall_s"] == pytest.approx(result["compute_s"] + result["wait_s"])
        assert result["utilisation"] == pytest.approx(result["compute_s"] / result["wall_s"])
        assert 0 < result["utilisation"] <= 1
        assert result["committed"] == result["rounds"] > 0
        assert result["bytes_sent"] > 0
        assert result["link_mbit_s"] > 0
        assert result["reason"].startswith(result["codec_for_link"])
        assert all(seconds > 0 for seconds in result["heartbeat_round_trips_s"])
