"""The bench of checkpoints saves both ways, and counts what it says."""

from pathlib import Path

from lowcomm.bench.checkpoint import measure
from lowcomm.bench.settings import CheckpointBench


def test_it_saves_both_ways_and_takes_steps_between(tmp_path: Path) -> None:
    told: list[str] = []
    found = measure(CheckpointBench(mb=1, saves=2, steps=1, batch_size=1), tmp_path, told.append)
    assert told == ["1 of 2 saves each way", "2 of 2 saves each way"]
    assert found.checkpoint_bytes > 20 * found.parameters
    assert found.checkpoint_bytes < 20.2 * found.parameters + 50_000
    assert found.stall_longest_s >= found.stall_s > 0
    assert sorted(item.name for item in tmp_path.iterdir()) == ["step-000000003", "step-000000004"]
