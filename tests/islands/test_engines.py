"""The contract of islands of several ranks, on real processes with Gloo, for every engine."""

from __future__ import annotations

import re
from typing import Any

import torch

from tests.islands.ranks import everything, make_island, outputs, train

Ranks = list[dict[str, dict[str, Any]]]


def test_two_ranks_train_as_one_on_the_same_global_batch(ranks: Ranks) -> None:
    plain = make_island(seed=0, engine="plain")
    start = everything(plain)
    layout = [(spec.name, spec.shape) for spec in plain.layout]
    train(plain, range(6))
    first, second = (rank["train"] for rank in ranks)
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


def test_a_restart_equals_going_on(ranks: Ranks) -> None:
    for rank in (rank["resume"] for rank in ranks):
        assert torch.equal(rank["went on"], rank["restarted"])
        assert torch.equal(*rank["outputs"])


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
