"""The outer state of an island of several ranks: each keeps its part, and nobody else can tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.islands.joined import together
from tests.islands.ranks import make_island
from tests.islands.weighed import FRAGMENTS, RANKS
from tests.outer.weighed import MALLOC

FP32 = 4.0
"""Bytes of one number; the rest is in bytes per parameter of the model, too."""
TIMEOUT_S = 100


@cache
def rounds_of_one_rank(codec: str) -> dict[str, Any]:
    """What two plain islands end with."""
    return together(make_island(engine="plain"), codec)


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_the_rounds_are_those_of_one_rank(ranks: list[dict[str, dict[str, Any]]], codec: str) -> None:
    first, second = (rank["rounds"][codec] for rank in ranks)
    alone = rounds_of_one_rank(codec)
    assert first["digests"] == first["other"]["digests"] == alone["digests"]
    assert len(first["digests"]) >= 6
    assert first["digest"] == first["other"]["digest"] == alone["digest"]
    assert torch.equal(first["local"], alone["local"])
    assert torch.equal(first["anchor"], alone["anchor"])
    assert len(second["digests"]) == len(first["digests"])


def test_a_restart_goes_on_bit_for_bit(ranks: list[dict[str, dict[str, Any]]]) -> None:
    found = ranks[0]["outer resume"]
    assert found["digests"]["again"] == found["digests"]["first"]
    assert len(found["digests"]["again"]) >= 6
    for kind in ("local", "anchor"):
        assert torch.equal(found[kind]["first"], found[kind]["again"])
    assert not torch.equal(found["local"]["first"], found["anchor"]["first"])


@pytest.mark.parametrize("way", ["snapshot given", "snapshot taken"])
def test_a_snapshot_is_the_state(ranks: list[dict[str, dict[str, Any]]], way: str) -> None:
    found = ranks[0][way]
    assert found["how"] == "snapshot"
    assert found["equal"] == [True, True]


def weigh(folder: Path, engine: str, *, error_feedback: bool) -> list[dict[str, float]]:
    """What each rank of an island that does rounds says of its memory."""

    def start(rank: int) -> subprocess.Popen[str]:
        settings = {
            "engine": engine,
            "rank": rank,
            "store": f"file://{folder / 'store'}",
            "error_feedback": error_feedback,
        }
        names = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
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
def test_no_rank_holds_more_than_its_part_and_two_fragments(
    tmp_path: Path, engine: str, error_feedback: bool
) -> None:
    state = 2 * FP32 + (FP32 if error_feedback else 0.0)  # the only island reduces everything
    fragment = state / FRAGMENTS
    for rank in weigh(tmp_path, engine, error_feedback=error_feedback):
        assert (
            abs(rank["rest"] - 2 * FP32 / RANKS) < FP32 / FRAGMENTS
        )  # nothing is lost before the first round
        assert rank["peak"] < state / RANKS + 2 * fragment
