"""`lowcomm bench learning` as a user runs it, on a study of seconds."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.runs import DEADLINE_S, SMALL, lines

STUDY = """
recipe = "base.toml"
set = ["train.steps={steps}"]
[[runs]]
name = "two islands"
kind = "islands"
islands = 2
[[runs]]
name = "one alone"
kind = "alone"
islands = 2
set = ["train.steps=20"]
"""


def study(folder: Path, steps: int) -> Path:
    text = folder / "text"
    text.mkdir(exist_ok=True)
    for number in range(12):
        (text / f"{number}.txt").write_text(f"document {number}: " + "some words that come again. " * 80)
    values = dict(setting.split("=") for setting in (*SMALL, f"data.source={text}"))
    base = "\n".join(
        f"{key} = {value}" if value.isdigit() else f'{key} = "{value}"' for key, value in values.items()
    )
    (folder / "base.toml").write_text(base)
    path = folder / "study.toml"
    path.write_text(STUDY.format(steps=steps))
    return path


def start(path: Path, log: Path, jobs: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lowcomm", "bench", "learning", str(path), "--log", str(log)]
    return subprocess.Popen(
        [*command, "--jobs", str(jobs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(path.parent)},
    )


@pytest.mark.processes
def test_what_is_logged_is_not_trained_again(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    path = study(tmp_path, 20)
    stdout, stderr = start(path, log).communicate(timeout=DEADLINE_S)
    first = lines(log)
    assert [(line["name"], line["tokens"]) for line in first] == [
        ("two islands", 2 * 20 * 2 * 32),
        ("one alone", 20 * 2 * 32),
    ], stderr
    assert first[0]["digests_equal"] is True
    assert first[0]["outer_steps"] == 2
    assert all(sent > 0 for sent in first[0]["bytes_sent"])
    again, _ = start(path, log).communicate(timeout=DEADLINE_S)
    assert again == stdout
    assert lines(log) == first


@pytest.mark.processes
def test_a_run_that_was_stopped_is_not_logged(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    process = start(study(tmp_path, 1_000_000), log)
    for pid in training(process, tmp_path):
        os.kill(pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1, stderr
    assert "island-0 was stopped by a signal after" in stderr
    assert not log.exists()


@pytest.mark.processes
@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only there children can follow their parent"
)
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_study_that_is_ended_leaves_no_islands(tmp_path: Path, jobs: int) -> None:
    process = start(study(tmp_path, 1_000_000), tmp_path / "log.jsonl", jobs)
    islands = training(process, tmp_path)
    process.terminate()
    process.communicate(timeout=DEADLINE_S)
    give_up_s = time.monotonic() + DEADLINE_S
    while left := [pid for pid in islands if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < give_up_s, left
        time.sleep(0.1)


def training(process: subprocess.Popen[str], folder: Path) -> list[int]:
    """The study's islands, once both train."""
    islands = dict.fromkeys(range(2), 0)
    while process.poll() is None and not all(islands.values()):
        time.sleep(0.1)
        for metrics in folder.glob("lowcomm-study-*/run/island-*/metrics.jsonl"):
            if '"train"' in metrics.read_text():
                islands[int(metrics.parent.name[-1])] = pid_of(metrics.parent)
    assert all(islands.values())
    return list(islands.values())


def pid_of(folder: Path) -> int:
    """The process whose command names this run folder."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(folder).encode() in words:
                return int(entry.name)
    raise AssertionError(f"no process runs in {folder}")
