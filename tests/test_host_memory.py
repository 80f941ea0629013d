"""What a process may have: the host's memory, its container's, both versions of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowcomm.host_memory import available_bytes, total_bytes

KIB, GIB = 1024, 2**30


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A host of 8 GiB, of which 6 are free, with 1 GiB of swap."""
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    lines = {"MemTotal": 8, "MemFree": 1, "MemAvailable": 6, "SwapTotal": 1, "SwapFree": 1}
    words = [f"{name}:  {gib * GIB // KIB} kB\n" for name, gib in lines.items()]
    (folder / "meminfo").write_text("".join(words) + "HugePages_Total: 0\n")
    return folder


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / f"memory.{name}").write_text(f"{value}\n")


def test_without_limits_it_is_the_hosts(proc: Path, tmp_path: Path) -> None:
    assert total_bytes(proc, tmp_path / "none") == 9 * GIB
    assert available_bytes(proc, tmp_path / "none") == 7 * GIB


def test_the_tightest_group_around_the_process_counts(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/system.slice/run.service\n")
    groups = tmp_path / "cgroup"
    limits = {"max": 4 * GIB, "current": GIB}
    group(groups / "system.slice", **limits, **{"swap.max": 0})
    group(groups / "system.slice" / "run.service", max="max", current=GIB)
    assert total_bytes(proc, groups) == 4 * GIB
    assert available_bytes(proc, groups) == 3 * GIB


def test_a_container_that_does_not_see_its_own_path(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/../../docker/0123\n")
    groups = tmp_path / "cgroup"
    group(groups, max=2 * GIB, current=2 * GIB + 1)
    assert total_bytes(proc, groups) == 2 * GIB
    assert available_bytes(proc, groups) == 0


def test_version_1(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("5:cpu,cpuacct:/a\n4:memory:/a\n")
    groups = tmp_path / "cgroup"
    group(groups / "memory", limit_in_bytes=9223372036854771712, usage_in_bytes=GIB)
    group(groups / "memory" / "a", limit_in_bytes=3 * GIB, usage_in_bytes=GIB)
    assert total_bytes(proc, groups) == 3 * GIB
    assert available_bytes(proc, groups) == 2 * GIB


def test_where_nobody_says(tmp_path: Path) -> None:
    assert total_bytes(tmp_path, tmp_path) is None
    assert available_bytes(tmp_path, tmp_path) is None
