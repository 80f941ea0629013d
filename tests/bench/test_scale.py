"""What control costs as a swarm grows: counted exactly, on the virtual clock."""

import json
from pathlib import Path

import pytest

from lowcomm.bench.scale import measure
from lowcomm.bench.settings import ScaleBench
from lowcomm.cli.main import main


def test_the_command_writes_figures_and_growth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "scale.json"
    assert main(["bench", "scale", "--islands", "2,4", "--rounds", "1", "--json", str(log)]) == 0
    shown = capsys.readouterr().out
    assert "most for a doubling of the islands: messages" in shown
    small, large = json.loads(log.read_text(encoding="utf-8"))["scale"]
    assert (small["islands"], large["islands"]) == (2, 4)
    for row in (small, large):
        assert row["rounds"] == 1
        assert row["messages"] == pytest.approx(sum(row["kinds"].values()))
        assert 0 < row["control_ms"] < row["all_ms"]
        assert row["kinds"]["vote"] == pytest.approx(1 - 1 / row["islands"])  # the leader sends none


def test_messages_grow_by_less_than_half_with_each_doubling() -> None:
    before, after = (measure(islands, 1, ScaleBench(rounds=1)) for islands in (6, 12))
    assert after.messages < 1.1 * before.messages
    assert after.bytes < 1.5 * before.bytes


def test_sizes_that_make_no_swarm_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "scale", "--islands", "1"]) == 2
    assert "--islands: expected at least 2, got 1" in capsys.readouterr().err
