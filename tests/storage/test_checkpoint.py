from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from lowcomm.errors import CheckpointError, StorageError
from lowcomm.storage.checkpoint import Checkpoints
from lowcomm.storage.rng import rng_state, set_rng_state


def parts(value: float) -> dict[str, dict[str, object]]:
    return {
        "island": {"model": {"w": torch.full((100, 7), value)}, "step": 3},
        "outer": {"anchor": [torch.full((50,), -value)], "head": "abc", "lr": 0.5},
    }


@contextmanager
def file_size_limit(limit_bytes: int) -> Iterator[None]:
    """A real limit of the operating system, hit by writes in mid-file as a full disk is."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    assert checkpoints.steps() == []
    checkpoints.save(10, parts(1.5))
    loaded = checkpoints.load(10)
    assert checkpoints.steps() == [10]
    assert torch.equal(loaded["island"]["model"]["w"], torch.full((100, 7), 1.5))
    assert torch.equal(loaded["outer"]["anchor"][0], torch.full((50,), -1.5))
    assert (loaded["island"]["step"], loaded["outer"]["head"], loaded["outer"]["lr"]) == (3, "abc", 0.5)


def test_one_part_can_be_loaded_alone(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(1, parts(1.0))
    (tmp_path / "step-000000001" / "island.pt").unlink()
    assert checkpoints.load(1, only=("outer",)).keys() == {"outer"}
    with pytest.raises(CheckpointError, match=r"has no data\.pt, which this version needs"):
        checkpoints.load(1, only=("data",))


def test_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (5, 10, 1_000_000_000_000, 15):
        checkpoints.save(step, parts(step))
    assert checkpoints.steps() == [15, 1_000_000_000_000]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["step-000000015", "step-1000000000000"]


def test_a_step_can_be_saved_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(5, parts(1.0))
    checkpoints.save(5, parts(2.0))
    assert checkpoints.load(5)["island"]["model"]["w"][0, 0] == 2.0
    assert [item.name for item in tmp_path.iterdir()] == ["step-000000005"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncate", r"outer\.pt has 100 bytes, expected \d+"),
        ("flip", r"outer\.pt has blake3 \w{12}, expected \w{12}"),
        ("remove", r"outer\.pt is missing"),
        ("manifest", r"manifest\.json can't be read"),
        ("manifest list", r"manifest\.json can't be read"),
    ],
)
def test_damage_is_named_and_so_is_what_to_do(tmp_path: Path, damage: str, message: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(5, parts(1.0))
    checkpoints.save(10, parts(2.0))
    file = tmp_path / "step-000000010" / "outer.pt"
    if damage == "truncate":
        os.truncate(file, 100)
    elif damage == "flip":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "remove":
        file.unlink()
    else:
        text = "[]" if damage == "manifest list" else '{"step": 10, "fi'
        (file.parent / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoints.load(10)
    assert "\n" not in str(caught.value)
    assert f"remove {file.parent} to go on without it (the one of step 5 is the next older)" in str(
        caught.value
    )
    assert checkpoints.load(5).keys() == {"island", "outer"}


def test_a_step_that_is_not_there_is_said(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(5, parts(1.0))
    with pytest.raises(CheckpointError, match=r"expected a checkpoint of inner step 6, found those of \[5\]"):
        checkpoints.load(6)


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from lowcomm.storage.checkpoint import Checkpoints
class Deadly:
    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoints(Path(sys.argv[1]), keep=2).save(10, {"island": {"w": torch.ones(9)}, "outer": {"x": Deadly()}})
"""


def test_a_process_killed_between_two_files_harms_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(5, parts(1.0))
    child = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=100, check=False)
    assert child.returncode == -signal.SIGKILL
    (left,) = (item for item in tmp_path.iterdir() if item.name.startswith("."))
    assert (left / "island.pt").is_file()
    assert checkpoints.steps() == [5]
    assert checkpoints.load(5).keys() == {"island", "outer"}
    checkpoints.save(15, parts(3.0))
    assert sorted(item.name for item in tmp_path.iterdir()) == ["step-000000005", "step-000000015"]


@pytest.mark.parametrize(
    "limit_bytes", [100, 3_000, 400_000], ids=["at once", "in the 1st file", "in the 2nd"]
)
def test_no_space_is_one_line_and_harms_nothing(tmp_path: Path, limit_bytes: int) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(5, parts(1.0))
    large = {"island": {"w": torch.ones(50_000)}, "outer": {"w": torch.ones(200_000)}}
    with file_size_limit(limit_bytes), pytest.raises(StorageError, match="File too large") as caught:
        checkpoints.save(10, large)
    assert "\n" not in str(caught.value)
    assert [item.name for item in tmp_path.iterdir()] == ["step-000000005"]
    assert checkpoints.load(5).keys() == {"island", "outer"}
    checkpoints.save(10, large)
    assert checkpoints.steps() == [5, 10]


def test_files_that_are_no_checkpoints_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "step-12").mkdir()
    (tmp_path / "step-000000012").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, parts(1.0))
    assert checkpoints.steps() == [2, 3]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "step-12").is_dir()


def test_the_manifest_can_be_read_by_others(tmp_path: Path) -> None:
    Checkpoints(tmp_path, keep=2).save(7, parts(1.0))
    manifest = json.loads((tmp_path / "step-000000007" / "manifest.json").read_text())
    assert manifest["step"] == 7
    assert (
        manifest["files"]["island.pt"]["bytes"] == (tmp_path / "step-000000007" / "island.pt").stat().st_size
    )


def test_random_numbers_go_on_where_they_were_saved(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float, float]:
        # an odd number of normals leaves one in numpy's and Python's cache
        return float(torch.randn(3)[1]), float(np.random.randn()), random.random(), random.gauss(0, 1)

    draw()
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, {"rng": rng_state()})
    expected = [draw() for _ in range(3)]
    set_rng_state(checkpoints.load(1)["rng"])
    assert [draw() for _ in range(3)] == expected
