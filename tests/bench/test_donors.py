"""`lowcomm bench donors` as a user runs it, with a small state; no figure of time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lowcomm.bench.donors import rate
from lowcomm.cli.main import main

TIMEOUT_S = 280.0


@pytest.mark.processes
def test_donors_train_on_while_a_joiner_comes(tmp_path: Path) -> None:
    out = tmp_path / "donors.json"
    options = ["--payload-mib", "16", "--mbit-s", "40", "--before-s", "1", "--json", str(out)]
    command = [sys.executable, "-m", "lowcomm", "bench", "donors", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    donors = json.loads(out.read_text())["donors"]
    assert donors["equal"] is True
    assert len(donors["before"]) == len(donors["during"]) == 2
    assert all(steps_per_s > 0 for steps_per_s in donors["during"])


def test_a_rate_is_that_of_whole_steps() -> None:
    assert rate([0.0, 1.0, 1.5, 2.0, 9.0], 0.5, 3.0) == 2.0


def test_a_negative_rate_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "donors", "--mbit-s", "-1"]) == 2
    assert "--mbit-s: expected" in capsys.readouterr().err
