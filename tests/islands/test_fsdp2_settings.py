"""Settings of FSDP2 and checkpointing that can't be, said in one line before anything is cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch import nn

from lowcomm.errors import ConfigError
from lowcomm.islands.checkpointing import checkpoint_blocks
from lowcomm.islands.fsdp2 import shard


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"replicas": 2},
            "island.replicas: expected a divisor of the island's 1 ranks, got 2",
        ),
        (
            {"cpu_offload": True},
            "island.offload = all: expected ranks with GPUs, these are on the host as it is",
        ),
    ],
    ids=["replicas", "offload"],
)
def test_what_can_not_be_is_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        shard(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), **settings)
    assert str(caught.value) == message


def test_a_model_without_blocks_has_nothing_to_checkpoint() -> None:
    with pytest.raises(ConfigError) as caught:
        checkpoint_blocks(nn.Sequential(nn.Linear(4, 4)))
    assert str(caught.value) == (
        "island.activation_checkpointing: expected a model with its blocks in an nn.ModuleList, Sequential "
        "has none; switch it off"
    )
