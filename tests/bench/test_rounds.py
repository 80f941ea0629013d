"""`lowcomm bench round --stock`: what happens to our rounds when stock hivemind fails."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SAYS = "stock_hivemind: peer 0 ended early with exit code 3; its last message: no luck"


def measure(folder: Path, failing: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Rounds of two peers where those of stock hivemind fail whose command has `failing` in it."""
    prefix, log = folder / "prefix", folder / "rounds.json"
    prefix.write_text(
        f'#!/bin/sh\ncase "$*" in *stock_hivemind*{failing}*) echo no luck >&2; exit 3;; esac\nexec "$@"\n'
    )
    prefix.chmod(0o755)
    command = [sys.executable, "-m", "lowcomm", "bench", "round", "--peers", "2", "--payload-mb", "0"]
    ended = subprocess.run(
        [*command, "--rounds", "3", "--stock", "--prefix", str(prefix), "--json", str(log)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return ended, json.loads(log.read_text())


@pytest.mark.processes
def test_our_rounds_are_kept_when_the_peer_under_test_fails(tmp_path: Path) -> None:
    ended, log = measure(tmp_path, "")
    assert ended.returncode == 1
    assert f"hivemind, 2 peers, 0 MB: {SAYS}" in ended.stderr
    assert [(row["who"], row["complete"]) for row in log["rounds"]] == [("lowcomm", 3)]
    assert len(log["failed"]) == 1


@pytest.mark.processes
def test_the_peer_under_test_may_fail_with_some_matchmaking_times(tmp_path: Path) -> None:
    ended, log = measure(tmp_path, "'\"matchmaking_s\": 0.25'")
    assert ended.returncode == 0, ended.stderr
    assert f"trial of stock hivemind, matchmaking 0.25 s: {SAYS}" in ended.stderr
    assert [row["who"] for row in log["rounds"]] == ["lowcomm", "hivemind"]
    assert log["rounds"][1]["matchmaking_s"] > 0.25
