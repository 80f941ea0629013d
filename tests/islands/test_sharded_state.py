"""The outer state of an island of several ranks: each keeps its part, and nobody else can tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.islands.joined import INNER_STEPS, make_island, together
from tests.islands.ranks import run_ranks
from tests.islands.weighed import FRAGMENTS
from tests.outer.weighed import MALLOC

FP32 = 4.0
"""Bytes of one number; the rest is in bytes per parameter of the model, too."""
TIMEOUT_S = 240


@pytest.fixture(scope="module", params=["ddp", "fsdp2", "deepspeed-zero3"])
def ranks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("joined")
    return run_ranks(2, folder, request.param, module="tests.islands.joined")


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_the_rounds_are_those_of_one_rank(ranks: list[dict[str, dict[str, Any]]], codec: str) -> None:
    first, second = (rank["rounds"][codec] for rank in ranks)
    alone = together(make_island(engine="plain"), codec, 3 * INNER_STEPS)
    assert first["digests"] == first["other"]["digests"] == alone["digests"]
    assert len(first["digests"]) >= 6
    assert first["digest"] == first["other"]["digest"] == alone["digest"]
    assert torch.equal(first["local"], alone["local"])
    assert torch.equal(first["anchor"], alone["anchor"])
    assert len(second["digests"]) == len(first["digests"])


def test_a_restart_goes_on_bit_for_bit(ranks: list[dict[str, dict[str, Any]]]) -> None:
    found = ranks[0]["resume"]
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


def weigh(folder: Path, engine: str, number: int, *, error_feedback: bool) -> list[dict[str, Any]]:
    """What the ranks of an island say that does rounds with a plain one; that one comes last."""

    def start(engine: str, ranks: int, rank: int, *peers: str) -> subprocess.Popen[str]:
        settings = {
            "engine": engine,
            "ranks": ranks,
            "rank": rank,
            "store": f"file://{folder / 'store'}",
            "codec": "int8",
            "error_feedback": error_feedback,
        }
        names = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        command = [sys.executable, "-m", "tests.islands.weighed", json.dumps(settings), *peers]
        env = {**os.environ, **MALLOC, **names}
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)

    children = [start(engine, number, rank) for rank in range(number)]
    try:
        lead = children[0].stdout
        assert lead is not None
        said_where = (line.strip() for line in lead if line.startswith("weighed@"))  # engines talk, too
        next(said_where)  # of the warm-up
        children.append(start("plain", 1, 0, next(said_where)))
        said = [child.communicate(timeout=TIMEOUT_S)[0] for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert [child.returncode for child in children] == [0] * len(children)
    return [json.loads(out.splitlines()[-1]) for out in said]


@pytest.mark.parametrize(
    ("engine", "error_feedback"),
    [
        pytest.param("ddp", True, id="ddp-feedback"),
        pytest.param("fsdp2", False, id="fsdp2"),
        pytest.param("deepspeed-zero3", False, id="zero3"),
    ],
)
def test_no_rank_holds_more_than_its_part_and_two_fragments(
    tmp_path: Path, engine: str, error_feedback: bool
) -> None:
    number = 2
    *ranks, plain = weigh(tmp_path, engine, number, error_feedback=error_feedback)
    state = 2 * FP32 + (FP32 + FP32 / 2 if error_feedback else 0.0)  # two islands reduce a half each
    fragment = state / FRAGMENTS
    allowance = FP32 / FRAGMENTS  # chunks under way, and what libraries keep
    for rank in ranks:
        assert rank["rest"] < 2 * FP32 / number + allowance
        assert rank["peak"] < state / number + 2 * fragment + allowance
    assert plain["rest"] > 2 * FP32 - allowance  # what is counted is there
    assert ranks[0]["digest"] == plain["digest"]
