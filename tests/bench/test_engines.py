"""`lowcomm bench engines`: the figures it reads off its runs, and a small run as a user starts it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lowcomm.bench.engines import EngineRun, Engines
from lowcomm.bench.settings import EngineBench

TIMEOUT_S = 600.0


def run(losses: tuple[float, ...], moved: float) -> EngineRun:
    """Of two islands; in the last outer step their digests differ. `moved`: of one of two parameters."""
    digests = tuple("abc"[: len(losses)])
    return EngineRun(
        digests=(digests, (*digests[:-1], "x")),
        losses=losses,
        anchors=tuple(torch.tensor([1.0, moved * step]) for step in range(1, len(losses) + 1)),
        start=torch.tensor([1.0, 0.0]),
    )


def test_figures_are_read_off_the_runs() -> None:
    found = Engines(
        bench=EngineBench(outer_steps=3, seeds=2),
        unlike=run((4.0, 3.0, 2.2), 1.5),
        plain={0: run((4.0, 2.0, 2.0), 1.0), 1: run((4.0, 3.0, 2.5), 9.0)},
    )
    assert found.unlike.equal_digests == 2
    assert found.losses_apart == pytest.approx([0.0, 0.5, 0.1])
    assert found.anchors_apart == pytest.approx([0.5] * 3)
    assert found.spread == pytest.approx(0.25)
    assert json.loads(json.dumps(found.to_dict()))["digests"] == ["a", "b", "c"]
    assert found.rows()[2] == ("3", "2.2000", "2.0000", "1.0e-01", "5.0e-01")


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
def test_unlike_engines_train_as_plain_ones_do(tmp_path: Path) -> None:
    out = tmp_path / "engines.json"
    command = [sys.executable, "-m", "lowcomm", "bench", "engines", "--json", str(out), "--seeds", "1"]
    command += ["--outer-steps", "3", "--inner-steps", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "digests equal on all islands after 3 of 3 outer steps" in done.stdout
    figures = json.loads(out.read_text())["engines"]
    assert figures["islands"] == ["plain x1", "fsdp2 x2", "deepspeed x2"]
    assert len(figures["losses"]) == len(figures["anchors_apart"]) == 3
    assert figures["losses"][-1] < figures["losses"][0]
    assert max(figures["losses_apart"]) < 1e-4
    assert max(figures["anchors_apart"]) < 1e-4
