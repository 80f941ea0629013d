"""Processes that do jobs: errors come through, and nobody is left behind by a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lowcomm.data.making.jobs import Pool
from lowcomm.errors import ConfigError, DataError, StorageError


def write(path: Path) -> None:
    """A job that leaves something behind."""
    path.write_text("done")


def refuse(number: int) -> None:
    """Jobs that fail in one way each."""
    if number == 0:
        raise ConfigError("number: expected another")
    if number == 1:
        raise FileNotFoundError(2, "No such file or directory", "some/file")
    if number == 2:
        raise ZeroDivisionError
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.processes)])
def test_every_job_is_done_once(tmp_path: Path, processes: int) -> None:
    paths = [tmp_path / str(number) for number in range(7)]
    with Pool(processes) as pool:
        assert sorted(pool.run(write, paths)) == list(range(7))
        assert pool.peak_bytes > 10_000_000
    assert all(path.read_text() == "done" for path in paths)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (0, ConfigError, "number: expected another"),
        (1, StorageError, "some/file: No such file or directory"),
        (2, RuntimeError, "in refuse\n    raise ZeroDivisionError"),
        (3, DataError, r"ended with code -9 \(-9: mostly too little memory\); the same command, with fewer"),
    ],
)
def test_what_goes_wrong_in_a_process_is_raised_here(
    number: int, error: type[Exception], message: str
) -> None:
    with Pool(2) as pool, pytest.raises(error, match=message):
        list(pool.run(refuse, [number, number]))


ORPHANS = """
import os, signal
from lowcomm.data.making.jobs import Pool
def end_parent(number):
    os.kill(os.getppid(), signal.SIGKILL)
if __name__ == "__main__":
    with Pool(2) as pool:
        list(pool.run(end_parent, [1, 2]))
"""


@pytest.mark.processes
def test_processes_go_when_the_one_that_gives_them_jobs_is_killed(tmp_path: Path) -> None:
    (tmp_path / "orphans.py").write_text(ORPHANS)
    root = Path(__file__).parents[3]
    # what all of them write to is closed when the last of them is gone: until then this waits
    command = [sys.executable, tmp_path / "orphans.py"]
    found = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONPATH": str(root)})
    assert found.returncode == -signal.SIGKILL
