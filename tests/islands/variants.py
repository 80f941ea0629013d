"""FSDP2 in all its variants on real ranks; `python -m tests.islands.variants RANK WORLD FOLDER` is one.

Each rank trains a small GPT (or what a variant wants) on its part of the same global batches, is
written to, and writes what it saw to FOLDER/rank-N.pt.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from lowcomm.islands import wrap_island
from lowcomm.islands.base import Island
from lowcomm.islands.checkpointing import checkpoint_blocks
from lowcomm.islands.fsdp2 import shard
from lowcomm.models.gpt import GPT, GPTShape

SHAPE = GPTShape(vocab_size=32, dim=16, layers=2, heads=2, kv_heads=2, ffn_dim=32, context=8)
STEPS = 3


class TwoTypes(nn.Module):
    """A part in bfloat16 before a part in fp32; called like the GPT."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(32, 16).bfloat16()
        self.head = nn.Linear(16, 32)

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.embed(ids).float())
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(8, 8) inputs and targets."""
    ids = torch.randint(32, (8, 9), generator=torch.Generator().manual_seed(step))
    return ids[:, :-1], ids[:, 1:]


def plain(variant: str) -> Island:
    """What a variant is compared with."""
    model = TwoTypes() if variant == "dtypes" else GPT(SHAPE)
    return wrap_island(model, torch.optim.AdamW(model.parameters(), lr=0.01), engine="plain")


def hsdp(model: nn.Module) -> nn.Module:
    return shard(model, replicas=2)


def bf16(model: nn.Module) -> nn.Module:
    return shard(model, precision="bf16")


def checkpointing(model: nn.Module) -> nn.Module:
    checkpoint_blocks(model)
    return shard(model)


def compiled(model: nn.Module) -> nn.Module:
    """By a back end that needs no C++ compiler; the wrapper, the names and the graph breaks are the same."""
    wrapped: nn.Module = torch.compile(shard(model), backend="aot_eager")  # type: ignore[assignment]
    return wrapped


def dtypes(model: nn.Module) -> nn.Module:
    """A user's own calls: what is sharded together has one type."""
    assert isinstance(model, TwoTypes)
    for part in (model.embed, model.head):
        fully_shard(part)
    return fully_shard(model)


def everything_together(model: nn.Module) -> nn.Module:
    checkpoint_blocks(model)
    return shard(model, replicas=2, precision="bf16")


VARIANTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "hsdp": hsdp,
    "bf16": bf16,
    "checkpointing": checkpointing,
    "compiled": compiled,
    "dtypes": dtypes,
    "hsdp-bf16-checkpointing": everything_together,
}


def train(island: Island, steps: range) -> None:
    for step in steps:
        inputs, targets = (part.chunk(island.world_size)[island.rank] for part in batch(step))
        island.backward(island.model(inputs, targets))
        island.update(1.0)


def everything(island: Island) -> torch.Tensor:
    return island.read(range(len(island.layout)))


def written(island: Island) -> torch.Tensor:
    """Values that every type of the variants holds exactly."""
    elements = sum(spec.elements for spec in island.layout)
    return (torch.arange(elements) % 7 - 3) / 8


def look(variant: str) -> dict[str, Any]:
    """Train, restart, be written to."""

    def sharded() -> Island:
        model = TwoTypes() if variant == "dtypes" else GPT(SHAPE)
        model = VARIANTS[variant](model)
        return wrap_island(model, torch.optim.AdamW(model.parameters(), lr=0.01))

    island = sharded()
    inputs, targets = batch(99)
    train(island, range(STEPS))
    seen: dict[str, Any] = {"trained": everything(island), "type": type(island).__name__}
    seen["layout"] = [(spec.name, spec.shape) for spec in island.layout]
    seen["dtypes"] = sorted({str(parameter.dtype) for parameter in island.model.parameters()})
    again, states = sharded(), [island.state_dict()]
    torch.distributed.broadcast_object_list(states, src=0)
    again.load_state_dict(states[0])
    seen["loaded"] = everything(again)
    with torch.no_grad():
        island.bare_model(inputs, targets)  # leaves whole copies behind
    island.write(range(len(island.layout)), written(island) if island.is_lead else None)
    seen["written"] = everything(island)
    with torch.no_grad():
        seen["loss"] = island.bare_model(inputs, targets)
    return seen


def main(rank: int, world_size: int, folder: Path) -> None:
    """One rank."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world_size
    )
    torch.save({variant: look(variant) for variant in VARIANTS}, folder / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
