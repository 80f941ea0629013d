"""What a run says of itself when its training begins: the data, the model, and what a step takes of it."""

from __future__ import annotations

import torch

from lowcomm.config.schema import Config
from lowcomm.data.loader import Loader
from lowcomm.data.shards import ShardedText
from lowcomm.errors import DataError
from lowcomm.islands.base import Island
from lowcomm.training.build import autocast
from lowcomm.types import Json


def opening(config: Config, island: Island, text: ShardedText, loader: Loader) -> dict[str, Json]:
    """The facts of the start line.

    `documents`, `text_bytes`, `data_digest` and `left_out_files` are of the whole source; `epoch_tokens` of
    what this island trains on and `all_epoch_tokens` of all shards; `step_tokens` of one inner step of all
    ranks of the island.
    """
    device = island.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    engine = config.island.engine
    if engine == "auto":
        engine = "ddp" if island.world_size > 1 else "plain"
    return {
        "documents": text.documents,
        "text_bytes": text.total_bytes,
        "data_digest": text.digest,
        "left_out_files": text.left_out,
        "epoch_tokens": loader.epoch_tokens,
        "all_epoch_tokens": text.training_tokens,
        "parameters": sum(spec.elements for spec in island.layout),
        "device": name,
        "precision": "bf16" if autocast(config, device) else "fp32",
        "engine": engine,
        "ranks": island.world_size,
        "step_tokens": loader.batch_tokens * config.train.grad_accumulation,
    }


def require_same_text(island: Island, text: ShardedText) -> None:
    """Let no ranks of one island train on different texts. Collective in the island.

    Raises:
        DataError: on every rank, if one has read other documents than the lead.
    """
    differs = text.digest != island.broadcast(text.digest if island.is_lead else None)
    if island.any_rank(differs):
        raise DataError(
            f"data.source {text.source}: expected the same documents on all ranks of an island, rank "
            f"{island.rank} has those of digest {text.digest[:12]}, {'unlike' if differs else 'like'} rank 0;"
            " give every host of the island the same files"
        )
