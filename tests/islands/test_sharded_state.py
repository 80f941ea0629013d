"""The outer state of an island of several ranks: each host keeps its part, counted by the kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.islands.ranks import TIMEOUT_S
from tests.islands.weighed import FRAGMENTS, RANKS
from tests.outer.weighed import MALLOC

FP32 = 4.0
"""Bytes of one number; the rest is in bytes per parameter of the model, too."""


def weigh(folder: Path, engine: str, *, error_feedback: bool, hosts: int) -> list[dict[str, float]]:
    """What each rank of an island that does rounds says of its memory; the ranks lie on so many hosts."""

    def start(rank: int) -> subprocess.Popen[str]:
        settings = {
            "engine": engine,
            "rank": rank,
            "store": f"file://{folder / 'store'}",
            "error_feedback": error_feedback,
        }
        names = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
        names["GROUP_RANK"] = str(rank * hosts // RANKS)
        command = [sys.executable, "-m", "tests.islands.weighed", json.dumps(settings)]
        return subprocess.Popen(
            command, env={**os.environ, **MALLOC, **names}, stdout=subprocess.PIPE, text=True
        )

    children = [start(rank) for rank in range(RANKS)]
    try:
        said = [child.communicate(timeout=TIMEOUT_S)[0] for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert [child.returncode for child in children] == [0] * RANKS
    return [json.loads(out.splitlines()[-1]) for out in said]  # engines talk, too


@pytest.mark.processes
@pytest.mark.parametrize(
    ("engine", "error_feedback"),
    [
        pytest.param("ddp", True, id="ddp-feedback"),
        pytest.param("fsdp2", False, id="fsdp2", marks=pytest.mark.slow),
        pytest.param("deepspeed-zero3", False, id="zero3", marks=pytest.mark.slow),
    ],
)
def test_no_host_holds_more_than_its_part_and_two_fragments(
    tmp_path: Path, engine: str, error_feedback: bool
) -> None:
    state = 2 * FP32 + (FP32 if error_feedback else 0.0)  # the only island reduces everything
    fragment = state / FRAGMENTS
    for rank in weigh(tmp_path, engine, error_feedback=error_feedback, hosts=RANKS):
        assert (
            abs(rank["rest"] - 2 * FP32 / RANKS) < FP32 / FRAGMENTS
        )  # nothing is lost before the first round
        assert rank["peak"] < state / RANKS + 2 * fragment


@pytest.mark.processes
def test_ranks_of_one_host_hold_the_state_once(tmp_path: Path) -> None:
    lead, other = weigh(tmp_path, "ddp", error_feedback=False, hosts=1)
    assert abs(lead["rest"] - 2 * FP32) < FP32 / FRAGMENTS
    assert abs(other["rest"]) < FP32 / FRAGMENTS
    assert other["peak"] < 2 * FP32 / FRAGMENTS
