"""`lowcomm bench soak` in a small form: what is counted must not grow; no time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lowcomm.bench import soak
from lowcomm.bench.settings import SoakBench
from lowcomm.bench.soak_figures import MOST_GROWTH, TENTHS, Sample, figures, grown, rows, tenths
from lowcomm.cli.main import main
from lowcomm.errors import ConfigError
from lowcomm.ledger import chain
from lowcomm.outer import at_risk

TIMEOUT_S = 280.0
COUNTS = ("threads", "open_files", "files")


def test_rounds_leave_no_object_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (chain, at_risk):
        monkeypatch.setattr(module, "KEPT_HEADS", 8)  # so that all that is kept is there after a tenth
    told: list[str] = []
    outcome = soak.run(SoakBench(rounds=120, virtual=True), told.append)
    measures = outcome.log["soak"]["measures"]
    assert list(measures) == [
        "wall_ms", "processor_ms", "reference_ms", "memory_mib", "objects", "processor_per_reference",
    ]  # fmt: skip
    objects = measures["objects"]["tenths"]
    assert len(objects) == TENTHS
    assert objects[-1] - objects[1] < 96  # of the rounds between, less than one a round
    assert len(told) == TENTHS


@pytest.mark.processes
def test_real_islands_keep_no_file_thread_or_descriptor(tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    command = [sys.executable, "-m", "lowcomm", "bench", "soak", "--rounds", "600", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert out.exists(), done.stderr
    measures = json.loads(out.read_text())["soak"]["measures"]
    assert {name: measures[name]["growth"] for name in COUNTS if measures[name]["growth"] > MOST_GROWTH} == {}
    assert all(len(measure["tenths"]) == TENTHS for measure in measures.values())


def look(rounds: int, seconds: float, files: float, reference_ms: float = 2.0) -> Sample:
    return Sample(
        rounds=rounds,
        times={"wall_s": seconds, "processor_s": seconds},
        sizes={"files": files, "reference_ms": reference_ms},
    )


def test_a_measure_that_grows_is_named() -> None:
    samples = [look(rounds, 0.01 * rounds, 20 + (rounds >= 90)) for rounds in range(100)]
    steady = figures(samples, 100)
    assert steady["wall_ms"] == {"tenths": [10.0] * TENTHS, "growth": 0.0}
    assert steady["files"] == {"tenths": [20.0] * 9 + [21.0], "growth": 0.05}
    assert grown(steady) == []
    slower = figures([look(n, 0.01 * n + 0.001 * max(0, n - 90), 20) for n in range(100)], 100)
    assert grown(slower) == [
        f"{name}: expected at most 5% more in the last tenth of rounds than in the second, got +10.0%"
        for name in ("wall_ms", "processor_ms", "processor_per_reference")
    ]
    assert rows(slower)[0] == ("wall ms", "10.0", "11.0", "+10.0%")


def test_a_machine_that_became_slower_is_no_growth() -> None:
    late = [(n, 0.01 * n + 0.001 * max(0, n - 90), 2.2 if n >= 90 else 2.0) for n in range(100)]
    log = figures([look(rounds, seconds, 20, reference) for rounds, seconds, reference in late], 100)
    assert (log["processor_ms"]["growth"], log["processor_per_reference"]["growth"]) == (0.1, 0.0)
    assert grown(log) == []


def test_too_few_looks_are_refused() -> None:
    with pytest.raises(ConfigError, match="--rounds 100: expected enough for two looks in each tenth"):
        tenths([look(rounds, 1.0, 1) for rounds in range(0, 100, 10)], 100)


def test_too_few_rounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "soak", "--rounds", "99"]) == 2
    assert "--rounds: expected at least 100, got 99" in capsys.readouterr().err
