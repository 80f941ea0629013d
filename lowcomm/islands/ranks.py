"""What islands of several ranks have in common: the first rank leads, the others follow by collectives.

The CUDA and NCCL paths are written for GPUs and were not run on one here.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowcomm.errors import ModelError
from lowcomm.islands.plain import PlainIsland
from lowcomm.islands.sharded import open_vectors
from lowcomm.islands.vectors import Vector, Vectors

T = TypeVar("T")


def require_equal_models(model: nn.Module) -> None:
    """Refuse ranks that hold unlike parameters: stages of a pipeline, or parts of tensors. Collective.

    Raises:
        ModelError: on every rank.
    """
    layout = [(name, tuple(p.shape), str(p.dtype), p.requires_grad) for name, p in model.named_parameters()]
    digest = hashlib.blake2b(repr(layout).encode(), digest_size=8).digest()
    device = next(model.parameters()).device if "nccl" in dist.get_backend() else torch.device("cpu")
    mine = int.from_bytes(digest, "little", signed=True)
    # the least of them, and the least with all bits turned: where these are of one number, all are equal
    box = torch.tensor([mine, ~mine], dtype=torch.int64, device=device)
    dist.all_reduce(box, op=dist.ReduceOp.MIN)
    if int(box[0]) != ~int(box[1]):
        raise ModelError(
            f"{type(model).__name__}: expected the same parameters on every rank of the island, the "
            f"{len(layout)} of rank {dist.get_rank()} are not those of another rank (a pipeline, or tensor "
            "parallelism?); build the same model on all ranks, and shard it with fully_shard or ZeRO"
        )


class RanksIsland(PlainIsland):
    """All ranks of torch.distributed's default group; engines say how they hold the tensors."""

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
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
    def _link_device(self) -> torch.device:
        """Where collectives work: NCCL moves CUDA tensors only, Gloo host tensors."""
        return self.device if "nccl" in dist.get_backend() else torch.device("cpu")

    @torch.no_grad()
    def read(self, indices: Sequence[int]) -> Tensor:
        """The tensors at `indices`, flat, on the lead; one whole tensor at a time elsewhere. Collective."""
        self._check(contributes=True)
        elements = sum(self.layout[index].elements for index in indices)
        flat = torch.empty(elements if self.is_lead else 0, dtype=torch.float32, device="cpu")
        start = 0
        for index in indices:
            whole = self._whole(index)
            if self.is_lead:
                flat[start : start + whole.numel()].view(whole.shape).copy_(whole)
            start += whole.numel()
        return flat

    @torch.no_grad()
    def write(self, indices: Sequence[int], values: Tensor | None) -> None:
        """Broadcast the lead's values and overwrite the tensors with them. Collective."""
        self._check(contributes=False)
        flat = self._from_lead(indices, values)
        for part, index in self._parts(flat, indices):
            self._overwrite(index, part)

    @torch.no_grad()
    def add(self, indices: Sequence[int], values: Vector | None) -> None:
        """Broadcast the lead's values, one whole tensor at a time, and add them. Collective."""
        self._check(contributes=False)
        start = 0
        for index in indices:
            spec = self.layout[index]
            part = None if values is None else values.load(start, start + spec.elements)
            self._increase(index, self._from_lead([index], part).view(spec.shape))
            start += spec.elements

    def _increase(self, index: int, value: Tensor) -> None:
        """Add this rank's part of the whole fp32 `value`, which all ranks pass. Collective."""
        parameter = self._parameters[index]
        parameter.add_(value.to(parameter.device))

    def _from_lead(self, indices: Sequence[int], values: Tensor | None) -> Tensor:
        if values is None:
            elements = sum(self.layout[index].elements for index in indices)
            flat = torch.empty(elements, dtype=torch.float32, device=self._link_device)
        else:
            flat = values.to(self._link_device)
        dist.broadcast(flat, src=0)
        return flat

    def broadcast(self, value: T | None) -> T:
        """The lead's value on all ranks. Collective."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self._link_device)
        return cast(T, box[0])

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Collective."""
        box = torch.tensor([int(flag)], dtype=torch.int64, device=self._link_device)
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return bool(box.item())

    def open_vectors(self) -> Vectors | None:
        """On the lead a place for vectors of which each host keeps its part. Collective."""
        first: dict[tuple[str, str], int] = {}
        for rank, host in enumerate(self._hosts()):
            first.setdefault(host, rank)
        keepers = [rank for rank in first.values() if rank > 0]
        if keepers:
            return open_vectors(self._rank, keepers, self.broadcast)
        return super().open_vectors() if self.is_lead else None

    def _hosts(self) -> list[tuple[str, str]]:
        """Where each rank is: its host's name, and torchrun's number of it. Collective."""
        hosts = [("", "")] * self._world_size
        dist.all_gather_object(hosts, (platform.node(), os.environ.get("GROUP_RANK", "")))
        return hosts

    def gather(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """Each rank's state, on the lead; empty elsewhere. Collective."""
        box: list[Any] | None = [None] * self._world_size if self.is_lead else None
        dist.gather_object(state, box, dst=0)
        return box or []
