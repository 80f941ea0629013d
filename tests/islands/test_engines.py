"""The contract of islands of several ranks, on real processes with Gloo, for every engine."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import torch

from tests.islands.joined import together
from tests.islands.ranks import ENGINES, everything, make_island, outputs, run_ranks, train

Ranks = list[dict[str, dict[str, Any]]]
SLOW = ("deepspeed-zero2", "deepspeed-offload3")
"""Run by `-m slow` only."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(engine, marks=pytest.mark.slow if engine in SLOW else pytest.mark.processes)
        for engine in ENGINES
    ],
)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What each of two ranks of an island saw, by task."""
    return run_ranks(2, tmp_path_factory.mktemp("ranks"), request.param)


def test_two_ranks_train_as_one_on_the_same_global_batch(ranks: Ranks) -> None:
    plain = make_island(seed=0, engine="plain")
    start = everything(plain)
    layout = [(spec.name, spec.shape) for spec in plain.layout]
    norms = train(plain, range(6))
    first, second = (rank["train"] for rank in ranks)
    assert first["norms"] == second["norms"] == pytest.approx(norms, rel=1e-4)
    assert (first["lead"], second["lead"]) == (True, False)
    assert first["size"] == second["size"] == 2
    assert [(name, tuple(shape)) for name, shape in first["layout"]] == layout
    assert first["layout"] == second["layout"]
    assert torch.equal(first["start"], start)
    assert second["start"].shape == second["end"].shape == (0,)  # only the lead gets what is read
    assert torch.allclose(first["end"], everything(plain), atol=1e-5)
    assert not torch.allclose(first["end"], start, atol=1e-2)
    assert torch.equal(first["outputs"], second["outputs"])
    assert torch.allclose(first["outputs"], outputs(plain), atol=1e-5)
    assert first["finite"] is second["finite"] is True


def test_what_is_written_is_what_trains_on(ranks: Ranks) -> None:
    plain = make_island(engine="plain")
    new = torch.linspace(-1, 1, everything(plain).numel())
    plain.write(range(len(plain.layout)), new)
    first, second = (rank["write"] for rank in ranks)
    assert torch.equal(first["written"], new)
    for rank in (first, second):
        assert torch.equal(rank["outputs"], outputs(plain))
    train(plain, range(2))
    assert torch.allclose(first["trained"], everything(plain), atol=1e-5)


def test_what_is_frozen_has_one_digest_however_it_is_sharded(ranks: Ranks) -> None:
    first, second = (rank["write"]["frozen"] for rank in ranks)
    assert first == make_island(engine="plain").frozen_digest() != ""
    assert second == ""  # the lead compares


def test_collectives_give_all_ranks_the_leads_values(ranks: Ranks) -> None:
    first, second = (rank["collectives"] for rank in ranks)
    for rank in (first, second):
        assert torch.equal(rank["written"], torch.arange(float(rank["written"].numel())))
        assert rank["numbers"] == [3, -1, 2**40]
        assert rank["flags"] == [False, True, True]
    assert first["written"].numel() == 16
    assert [state["rank"] for state in first["gathered"]] == [0, 1]
    assert torch.equal(first["gathered"][1]["tensor"], torch.ones(2))
    assert second["gathered"] == []


def test_ranks_that_have_read_other_texts_all_stop(ranks: Ranks) -> None:
    (first, other), (second, others) = (rank["texts"]["said"] for rank in ranks)
    assert first == second == ""
    assert "expected the same data on all ranks of an island, rank 0 has that of digest" in other
    assert ", unlike rank 0; give every host of the island the same files" in others


def test_a_restart_equals_going_on(ranks: Ranks) -> None:
    for rank in (rank["resume"] for rank in ranks):
        assert torch.equal(rank["went on"], rank["restarted"])
        assert torch.equal(rank["went on"], rank["remade"])
        first, *others = rank["outputs"]
        assert all(torch.equal(first, other) for other in others)


def test_a_nan_stops_every_rank(ranks: Ranks) -> None:
    first, second = (rank["non-finite"] for rank in ranks)
    assert first["committed"] == second["committed"] == [True]
    assert "submodule.weight is not finite" in first["error"]
    assert "lead rank" in second["error"]
    assert not (first["finite"] and second["finite"])


def test_a_model_smaller_than_the_island_trains_or_is_refused(ranks: Ranks) -> None:
    too_small = "Linear: expected a tensor of at least 2 rows, one for each shard, found at most 1; use fewer"
    for limits in (rank["limits"] for rank in ranks):
        fits = limits["engine"] != "fsdp2"  # it cuts rows; DDP cuts nothing, ZeRO pads
        assert limits["tiny"] == "trained" if fits else limits["tiny"].startswith(too_small)


def test_an_optimizer_of_another_model_is_refused(ranks: Ranks) -> None:
    for said in (rank["limits"]["foreign"] for rank in ranks):
        assert re.search(
            "parameter group 0: expected parameters that the islands exchange|in a group of", said
        )
        assert "\n" not in said


def test_a_model_that_one_rank_has_changed_stops_every_rank(ranks: Ranks) -> None:
    first, last = (rank["changed"] for rank in ranks)
    assert "another rank of this island found that its model has changed" in first["said"]
    assert "parameter frozen.weight: expected it frozen" in last["said"]
    assert (first["read"], last["read"]) == (len(everything(make_island(engine="plain"))), 0)


@cache
def rounds_of_one_rank(codec: str) -> dict[str, Any]:
    """What two plain islands end with."""
    return together(make_island(engine="plain"), codec)


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_the_rounds_are_those_of_one_rank(ranks: Ranks, codec: str) -> None:
    first, second = (rank["rounds"][codec] for rank in ranks)
    alone = rounds_of_one_rank(codec)
    assert first["digests"] == first["other"]["digests"] == alone["digests"]
    assert len(first["digests"]) >= 6
    assert first["digest"] == first["other"]["digest"] == alone["digest"]
    assert torch.equal(first["local"], alone["local"])
    assert torch.equal(first["anchor"], alone["anchor"])
    assert len(second["digests"]) == len(first["digests"])


def test_a_restart_goes_on_bit_for_bit(ranks: Ranks) -> None:
    found = ranks[0]["outer resume"]
    assert found["digests"]["again"] == found["digests"]["first"]
    assert len(found["digests"]["again"]) >= 6
    for kind in ("local", "anchor"):
        assert torch.equal(found[kind]["first"], found[kind]["again"])
    assert not torch.equal(found["local"]["first"], found["anchor"]["first"])


@pytest.mark.parametrize("way", ["snapshot given", "snapshot taken"])
def test_a_snapshot_is_the_state(ranks: Ranks, way: str) -> None:
    found = ranks[0][way]
    assert found["how"] == "snapshot"
    assert found["equal"] == [True, True]
