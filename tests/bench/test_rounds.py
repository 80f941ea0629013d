"""`lowcomm bench round --stock`: what happens to our rounds when stock hivemind fails."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.processes
def test_our_rounds_are_kept_when_the_peer_under_test_fails(tmp_path) -> None:
    prefix = tmp_path / "prefix"
    prefix.write_text(
        '#!/bin/sh\ncase "$*" in *stock_hivemind*) echo no luck >&2; exit 3;; esac\nexec "$@"\n'
    )
    prefix.chmod(0o755)
    command = [sys.executable, "-m", "lowcomm", "bench", "round", "--peers", "2", "--payload-mb", "0"]
    options = ["--rounds", "3", "--stock", "--prefix", str(prefix), "--json", str(tmp_path / "rounds.json")]
    ended = subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 1
    says = "peer 0 ended early with exit code 3; its last message: no luck"
    assert f"hivemind, 2 peers, 0 MB: lowcomm.bench.stock_hivemind: {says}" in ended.stderr
    log = json.loads((tmp_path / "rounds.json").read_text())
    assert [(row["who"], row["complete"]) for row in log["rounds"]] == [("lowcomm", 3)]
    assert len(log["failed"]) == 1
