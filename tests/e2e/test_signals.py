"""Signals to all processes of a run at once, and terminals that are closed: saved, and left in order."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lowcomm.launching.process_table import ProcessKey, alive, children_of
from tests.e2e.runs import DEADLINE_S, ROOT, SMALL
from tests.e2e.test_deaths import RECIPE, rounds, wait_for

ENDLESS = ("train.steps=1000000", "train.checkpoint_every=0")
"""What is saved is saved at the end."""


def saved(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("step-*"))


def descendants(pid: int) -> list[ProcessKey]:
    return [found for child in children_of(pid) for found in (child, *descendants(child.pid))]


@pytest.mark.processes
def test_sigterm_to_every_process_of_a_launch_saves_each_island(tmp_path, start) -> None:
    """As `systemctl stop` and a reboot send it; launch hands it on once more."""
    out = tmp_path / "run"
    settings = [part for setting in ENDLESS for part in ("--set", setting)]
    launch = start("launch", RECIPE, "--islands", 2, "--out", out, *settings)
    folders = [out / f"island-{index}" for index in range(2)]
    wait_for(lambda: all(rounds(folder) for folder in folders), "a round of both islands")
    family = descendants(launch.pid)
    for pid in (launch.pid, *(process.pid for process in family)):
        os.kill(pid, signal.SIGTERM)
    assert launch.wait(DEADLINE_S) == 130, launch.stderr.read()
    assert all(saved(folder) for folder in folders)
    assert not any(alive(process) for process in family)


@pytest.mark.processes
def test_a_run_under_nohup_outlives_its_terminal(source, tmp_path) -> None:
    """The hang-up is ignored, the bar is drawn nowhere, and a SIGTERM that comes twice saves."""
    out = tmp_path / "run"
    words = ["train", str(RECIPE), "--out", str(out)]
    for setting in (*SMALL, *ENDLESS, f"data.source={source}", "metrics.console=progress"):
        words += ["--set", setting]
    terminal, side = pty.openpty()
    train = subprocess.Popen(
        ["bash", "-c", 'trap "" HUP; exec "$@"', "-", sys.executable, "-m", "lowcomm", *words],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=side, stderr=side, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    os.close(side)
    try:
        wait_for(lambda: rounds(out), "a round")
        os.close(terminal)
        os.killpg(train.pid, signal.SIGHUP)
        seen = len(rounds(out))
        wait_for(lambda: len(rounds(out)) > seen + 1, "rounds without a terminal")
        assert not saved(out)
        train.send_signal(signal.SIGTERM)
        train.send_signal(signal.SIGTERM)
        assert train.wait(DEADLINE_S) == 130
    finally:
        if train.poll() is None:
            train.kill()
            train.wait()
    assert saved(out)
