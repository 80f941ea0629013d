"""An island of several ranks that hold the whole model each: DistributedDataParallel.

The CUDA and NCCL paths are written for GPUs and were not run on one here.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lowcomm.islands.plain import COMPILED, PlainIsland


def data_parallel(model: nn.Module) -> DistributedDataParallel | None:
    """The DistributedDataParallel that `model` is, compiled or not; None if it is none."""
    bare = getattr(model, COMPILED, model)
    return bare if isinstance(bare, DistributedDataParallel) else None


class DDPIsland(PlainIsland):
    """Ranks whose parameters are equal at every inner step; the first one leads. An `Island`.

    Args:
        model: a module, which is wrapped, or a DistributedDataParallel.
        optimizers: the inner optimizers of this rank.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        wrapped = data_parallel(model)
        if wrapped is None:
            device = next(model.parameters()).device
            wrapped = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
            model = wrapped
        self._wrapped = wrapped
        super().__init__(model, optimizers)
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._world_size

    @property
    def is_lead(self) -> bool:
        return self._rank == 0

    @property
    def bare_model(self) -> nn.Module:
        bare: nn.Module = self._wrapped.module
        return bare

    def no_sync(self) -> AbstractContextManager[None]:
        """DDP's own."""
        quiet: AbstractContextManager[None] = self._wrapped.no_sync()
        return quiet

    @property
    def _link_device(self) -> torch.device:
        """Where collectives work: NCCL moves CUDA tensors only, Gloo host tensors."""
        return self.device if dist.get_backend() == "nccl" else torch.device("cpu")

    @torch.no_grad()
    def write(self, indices: Sequence[int], values: Tensor | None) -> None:
        """Broadcast the lead's values and overwrite the tensors with them. Collective."""
        elements = sum(self.layout[index].elements for index in indices)
        if values is None:
            flat = torch.empty(elements, dtype=torch.float32, device=self._link_device)
        else:
            flat = values.to(self._link_device)
        dist.broadcast(flat, src=0)
        super().write(indices, flat)

    def broadcast(self, values: Sequence[int] | None, count: int) -> list[int]:
        """The lead's integers on all ranks. Collective."""
        box = torch.zeros(count, dtype=torch.int64)
        if values is not None:
            box.copy_(torch.tensor(list(values), dtype=torch.int64))
        box = box.to(self._link_device)
        dist.broadcast(box, src=0)
        return [int(value) for value in box.tolist()]

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Collective."""
        box = torch.tensor([int(flag)], device=self._link_device)
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return bool(box.item())

    def gather(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """Each rank's state, on the lead; empty elsewhere. Collective."""
        box: list[Any] | None = [None] * self._world_size if self.is_lead else None
        dist.gather_object(state, box, dst=0)
        return box or []
