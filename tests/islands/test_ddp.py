from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.islands.ranks import everything, make_island, run_ranks, train

Ranks = list[dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return run_ranks(2, tmp_path_factory.mktemp("ranks"))


def test_two_ranks_train_as_one_on_the_same_global_batch(ranks: Ranks) -> None:
    plain = make_island(seed=0)
    start = everything(plain)
    layout = [(spec.name, spec.shape) for spec in plain.layout]
    train(plain, range(6))
    first, second = (rank["train"] for rank in ranks)
    assert (first["lead"], second["lead"]) == (True, False)
    assert first["size"] == second["size"] == 2
    assert [(name, tuple(shape)) for name, shape in first["layout"]] == layout
    assert torch.equal(first["start"], start)
    assert torch.equal(second["start"], start)
    assert torch.equal(first["end"], second["end"])
    assert torch.allclose(first["end"], everything(plain), atol=1e-5)
    assert not torch.allclose(first["end"], start, atol=1e-2)


def test_collectives_give_all_ranks_the_leads_values(ranks: Ranks) -> None:
    first, second = (rank["collectives"] for rank in ranks)
    for rank in (first, second):
        assert torch.equal(rank["written"], torch.arange(float(rank["written"].numel())))
        assert rank["numbers"] == [3, -1, 2**40]
        assert rank["flags"] == [False, True, True]
    assert torch.equal(first["inside"], second["inside"])
    assert [state["rank"] for state in first["gathered"]] == [0, 1]
    assert torch.equal(first["gathered"][1]["tensor"], torch.ones(2))
    assert second["gathered"] == []


def test_a_restart_equals_going_on(ranks: Ranks) -> None:
    first, second = (rank["resume"] for rank in ranks)
    for rank in (first, second):
        assert torch.equal(rank["went on"], rank["restarted"])
        assert torch.equal(rank["went on"], first["went on"])
