"""`lowcomm bench snapshot` as a user runs it, with a small state; no figure of time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lowcomm.cli.main import main

TIMEOUT_S = 280.0
SIZE_BYTES = 64 * 2**20


@pytest.mark.processes
def test_a_cut_snapshot_does_not_start_over(tmp_path: Path) -> None:
    out = tmp_path / "snapshot.json"
    options = ["--payload-mib", "64", "--cut", "0.7", "--mbit-s", "400", "--json", str(out)]
    command = [sys.executable, "-m", "lowcomm", "bench", "snapshot", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    cuts = {cut["killed"]: cut for cut in json.loads(out.read_text())["snapshot"]["cuts"]}
    assert set(cuts) == {"joiner", "donor"}
    assert cuts["joiner"]["before_bytes"] >= 0.7 * SIZE_BYTES
    for cut in cuts.values():
        assert cut["equal"] is True
        assert cut["size_bytes"] == SIZE_BYTES
        # starting over would take 1.7; up to 8 pieces of 1 MiB are under way from each of the two
        assert 1.0 <= cut["ratio"] < 1.35


@pytest.mark.parametrize(
    "options", [["--donors", "1"], ["--cut", "1"], ["--mbit-s", "-1"]], ids=lambda options: options[0]
)
def test_what_can_not_be_measured_is_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "snapshot", *options]) == 2
    assert f"{options[0]}: expected" in capsys.readouterr().err
