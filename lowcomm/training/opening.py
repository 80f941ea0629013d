"""What a run says of itself when its training begins: the data, the model, and what a step takes of it."""

from __future__ import annotations

import torch
from torch import nn

from lowcomm.config.schema import Config
from lowcomm.data.loader import Batches
from lowcomm.errors import DataError
from lowcomm.islands.base import Island
from lowcomm.islands.frozen import digest_of_trained
from lowcomm.peers.agreement import WEIGHTS_DIGEST
from lowcomm.tasks.base import Data, Facts
from lowcomm.training.build import autocast
from lowcomm.types import Json


def opening(config: Config, island: Island, data: Data, loader: Batches, micro_steps: int) -> dict[str, Json]:
    """The facts of the start line.

    `data_digest` and what the data itself tells (of text: `documents`, `text_bytes`, `left_out_files` and
    `all_epoch_tokens`, those of all shards) are of the whole source; `epoch_tokens` of what this island
    trains on, None where nobody knows; `step_tokens` of one inner step of all ranks of the island.
    """
    device = island.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    engine = config.island.engine
    if engine == "auto":
        engine = "ddp" if island.world_size > 1 else "plain"
    return {
        **data.facts,
        "data_digest": data.digest,
        "epoch_tokens": loader.epoch_tokens,
        "parameters": sum(spec.elements for spec in island.layout),
        "device": name,
        "precision": "bf16" if autocast(config, device) else "fp32",
        "engine": engine,
        "ranks": island.world_size,
        "step_tokens": loader.batch_tokens * micro_steps,
    }


def agreement(facts: Facts, model: nn.Module) -> dict[str, Json]:
    """What islands compare when they meet, beside settings, data and what is frozen.

    Args:
        facts: of the task.
        model: as its training begins, whole.
    """
    weights = {WEIGHTS_DIGEST: digest_of_trained(model)} if facts.loaded else {}
    return {**facts.agreed, **weights}


def require_same_data(island: Island, data: Data) -> None:
    """Let no ranks of one island train on different data. Collective in the island.

    Raises:
        DataError: on every rank, if one has read other data than the lead.
    """
    differs = data.digest != island.broadcast(data.digest if island.is_lead else None)
    if island.any_rank(differs):
        raise DataError(
            f"data.source {data.source}: expected the same data on all ranks of an island, rank "
            f"{island.rank} has that of digest {data.digest[:12]}, {'unlike' if differs else 'like'} rank 0;"
            " give every host of the island the same files"
        )
