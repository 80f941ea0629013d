"""`lowcomm bench speeds` as a user runs it, in a small form; no figure of time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lowcomm.bench.settings import SpeedBench
from lowcomm.bench.speeds import SpeedRun, Speeds

TIMEOUT_S = 280.0


@pytest.mark.processes
def test_islands_of_unlike_speed_train_one_model(tmp_path: Path) -> None:
    out = tmp_path / "speeds.json"
    command = [
        sys.executable,
        "-m",
        "lowcomm",
        "bench",
        "speeds",
        "--json",
        str(out),
        "--steps-s",
        "0.05,0.1",
    ]
    command += ["--inner-steps", "8", "--rounds", "4", "--slow-rounds", "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "rounds until a slowdown of 4x is followed:" in done.stdout
    figures = json.loads(out.read_text())["speeds"]
    assert figures["equal_digests"] == {"matched": True, "fixed": True, "slowed": True}
    assert all(set(steps) == {8} for steps in figures["intervals"]["fixed"])
    for name in ("matched", "fixed"):
        assert len(figures["idle_share"][name]) == 2
        tokens = [point[1] for point in figures["curves"][name]]
        assert tokens == sorted(tokens)
        assert tokens[-1] >= 4 * (8 + 4) * 256
        assert figures["curves"][name][-1][2] < figures["curves"][name][0][2]


def island(rounds: list[tuple[int, int, int]], slowed_after: int = -1) -> dict:
    return {
        "wall_s": 10.0,
        "trained_s": 9.0,
        "slowed_after": slowed_after,
        "rounds": [
            {
                "outer_step": outer_step, "committed": True, "inner_steps": steps,
                "next_inner_steps": following,
                "at_s": float(outer_step), "total_tokens": 100 * outer_step, "eval_loss": 4.0 / outer_step,
                "digest": "d", "wait_s": 0.0,
            }
            for outer_step, steps, following in rounds
        ],
    }  # fmt: skip


def test_figures_are_read_off_the_rounds() -> None:
    bench = SpeedBench(steps_s=(0.1, 0.2), inner_steps=8, slow_island=0, slow_by=4.0)
    even = SpeedRun(mode="matched", islands=(island([(1, 8, 8), (2, 8, 8)]), island([(1, 4, 4), (2, 4, 4)])))
    slowed = SpeedRun(
        mode="matched",
        islands=(
            island([(1, 8, 8), (2, 4, 8), (3, 2, 4), (4, 4, 4)], slowed_after=1),
            island([(1, 4, 4), (2, 4, 4), (3, 4, 8), (4, 8, 8)]),
        ),
    )
    speeds = Speeds(bench=bench, runs={"matched": even, "fixed": even, "slowed": slowed})
    assert bench.tokens == (8 + 4) * 256
    assert speeds.followed_after == 2
    assert even.idle == [1 - 9 / 10] * 2
    assert speeds.equal_tokens == (200, {"fixed": 2.0, "matched": 2.0})
    assert even.loss_at_tokens(150) == 3.0
    assert even.loss_at_time(1.5) == 4.0
    assert speeds.rows()[4] == ("slowed", "100 ms", "8, 4, 2, 4", "10.0%")
