"""A model that is spread over ranks as no engine knows it is refused by name, on every rank, untouched."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from lowcomm.errors import ModelError
from lowcomm.islands import wrap_island
from tests.islands.ranks import run_ranks
from tests.islands.unknown import WAYS

SAID = {
    "fsdp1": "FullyShardedDataParallel: .*, it is sharded by FSDP1; shard it with .*fully_shard",
    "fsdp1_with_original_parameters": "FullyShardedDataParallel: .*, it is sharded by FSDP1",
    "fsdp1_inside": "module 0: .*, it is sharded by FSDP1",
    "tensor_parallel": r"parameter 0.weight: .*DTensor with placements \('S\(0\)',\) \(tensor par",
    "tensor_parallel_in_fsdp2": r"parameter 0.weight: .*DTensor with placements .*\(tensor parallelism\?\)",
    "fsdp2_on_a_part_of_the_ranks": "parameter 0.weight: .*spread over 1 of 2 ranks",
    "fsdp2_on_a_part_of_the_model": "parameter 2.weight: .*on no shard, .*; call fully_shard on the whole",
    "data_parallel": "DataParallel: .*it is wrapped in DataParallel; run a process for each GPU",
    "ddp_inside": "module 0: .*a DistributedDataParallel inside a model; wrap the whole model in one",
    "pipeline": "Sequential: expected the same parameters on every rank of the island, .*pipeline",
    "megatron": "parameter 0.weight: .*it is tensor-parallel",
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    return run_ranks(2, tmp_path_factory.mktemp("unknown"), module="tests.islands.unknown")


@pytest.mark.processes
@pytest.mark.parametrize("way", [way.__name__ for way in WAYS])
def test_unknown_sharding_is_refused_by_name(ranks: list[dict[str, dict[str, Any]]], way: str) -> None:
    for rank in ranks:
        assert re.match(f"ModelError: {SAID[way]}", rank[way]["said"]), rank[way]["said"]
        assert "\n" not in rank[way]["said"]
        assert rank[way]["same"]


def test_data_parallel_is_refused_without_ranks_too() -> None:
    model = nn.DataParallel(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="wrapped in DataParallel; run a process for each GPU"):
        wrap_island(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_class_of_the_users_own_may_have_such_a_name() -> None:
    class DataParallel(nn.Linear):
        pass

    model = DataParallel(2, 2)
    assert wrap_island(model, torch.optim.SGD(model.parameters(), lr=0.1)).world_size == 1
