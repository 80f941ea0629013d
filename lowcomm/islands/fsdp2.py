"""An island whose ranks hold a part of each tensor: FSDP2 (`fully_shard`), also with replicas (HSDP).

Each parameter is a DTensor cut along its first dimension into uneven, unpadded chunks, those of
`torch.chunk` (Zhao et al. 2023, arXiv:2304.11277; torch.distributed.fsdp.fully_shard). Whole
tensors are gathered one at a time to be read; to write, each rank cuts its own part out of them.

The CUDA and NCCL paths are written for GPUs and were not run on one here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from lowcomm.errors import ConfigError, ModelError
from lowcomm.islands.checkpointing import outermost_lists
from lowcomm.islands.ranks import RanksIsland


def shard(
    model: nn.Module,
    *,
    precision: str = "fp32",
    replicas: int = 1,
    cpu_offload: bool = False,
) -> nn.Module:
    """Shard a model in place over all ranks, block by block; all take the first rank's weights.

    A block is a member of an outermost `nn.ModuleList`, as transformers have them, wrapped by
    `checkpoint_blocks` or not; what is left is one more. Build the inner optimizers from the parameters
    after this.

    Args:
        model: on its device, the same shapes on all ranks.
        precision: `bf16` computes in bfloat16 and reduces and keeps fp32; `fp32`.
        replicas: copies of the sharded model (HSDP); divides the number of ranks.
        cpu_offload: parameters, gradients and inner optimizer state stay on the host.

    Raises:
        ConfigError: `replicas` does not divide the ranks, or the model is on the host already.
        ModelError: no tensor has a row for each rank.
    """
    world_size = dist.get_world_size()
    if world_size % replicas:
        raise ConfigError(
            f"island.replicas: expected a divisor of the island's {world_size} ranks, got {replicas}"
        )
    shards, rows = world_size // replicas, max((len(p) for p in model.parameters() if p.ndim), default=0)
    if rows < shards:
        raise ModelError(
            f"{type(model).__name__}: expected a tensor of at least {shards} rows, one for each shard, found "
            f"at most {rows}; use fewer ranks or island.engine = ddp"
        )
    device = next(model.parameters()).device
    if cpu_offload and device.type == "cpu":
        raise ConfigError("island.offload = all: expected ranks with GPUs, these are on the host as it is")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor, src=0)
    if replicas > 1:
        mesh = init_device_mesh(device.type, (replicas, shards), mesh_dim_names=("replica", "shard"))
    else:
        mesh = init_device_mesh(device.type, (world_size,))
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policy = mixed if precision == "bf16" else MixedPrecisionPolicy()
    offload = CPUOffloadPolicy() if cpu_offload else OffloadPolicy()
    for blocks in outermost_lists(model):
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy, offload_policy=offload)
    fully_shard(model, mesh=mesh, mp_policy=policy, offload_policy=offload)
    return model


class FSDP2Island(RanksIsland):
    """Ranks that hold a part of each tensor; the first one leads. An `Island`.

    Args:
        model: sharded, by `shard` or by the user's own calls of `fully_shard`.
        optimizers: built from its parameters after that.

    Raises:
        ModelError: nothing is trainable, or an optimizer holds parameters from before the sharding.
    """

    _advice = "build the optimizer after fully_shard, which replaces the parameters"
    _watched = ("dtype", "shape")  # parameters may be offloaded

    @property
    def device(self) -> torch.device:
        """Where the ranks compute; the parameters may be offloaded to the host."""
        first = self._parameters[0]
        kind = first.device_mesh.device_type if isinstance(first, DTensor) else first.device.type
        return torch.device("cuda", torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)

    @property
    def casts(self) -> bool:
        """Its mixed-precision policy does, for the parts that have one."""
        return any(
            state._mp_policy.param_dtype is not None
            for module in self._sharded()
            for state in (module._get_fsdp_state(),)
        )

    def update(self, clip_norm: float) -> Tensor:
        """Clip, step, clear; the norm is that of all ranks' parts."""
        norm = super().update(clip_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def no_sync(self) -> AbstractContextManager[None]:
        """Gradients stay whole on each rank until the last micro-step."""
        return self._quiet()

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        for module in self._sharded():
            module.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for module in self._sharded():
                module.set_requires_gradient_sync(True, recurse=False)

    def is_finite(self) -> bool:
        """Over this rank's parts."""
        return all(bool(_local(p).isfinite().all()) for p in self._model.parameters())

    def frozen_digest(self) -> str:
        """Over the whole tensors, gathered one at a time. Collective."""
        self._reshard()
        return super().frozen_digest()

    def state_dict(self, *, frozen: bool = True) -> dict[str, Any]:
        """As that of a plain island, so that any sharding can load it. Collective."""
        self._reshard()
        state = super().state_dict(frozen=frozen)
        return {
            "model": {name: self._full(value) for name, value in state["model"].items()},
            "optimizers": [
                {
                    **optimizer,
                    "state": {
                        number: {key: self._full(value) for key, value in tensors.items()}
                        for number, tensors in optimizer["state"].items()
                    },
                }
                for optimizer in state["optimizers"]
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what any island's `state_dict` gave; each rank keeps its part."""
        self._reshard()
        super().load_state_dict(state)

    def _check(self, *, contributes: bool) -> None:
        self._reshard()  # also for what comes next: whole copies would hide what is written
        super()._check(contributes=contributes)

    def _whole(self, index: int) -> Tensor:
        return _gathered(self._parameters[index].detach())

    def _whole_frozen(self, parameter: Tensor) -> AbstractContextManager[Tensor]:
        return nullcontext(_gathered(parameter.detach()))

    def _overwrite(self, index: int, value: Tensor) -> None:
        parameter = self._parameters[index]
        _local(parameter).copy_(_local(self._part(value, parameter)))

    def _increase(self, index: int, value: Tensor) -> None:
        parameter = self._parameters[index]
        _local(parameter).add_(_local(_cut(value, parameter)))

    def _part(self, value: Tensor, like: Tensor) -> Tensor:
        return _cut(value.to(like.dtype), like) if isinstance(like, DTensor) else value

    def _full(self, value: object) -> object:
        if not isinstance(value, DTensor):
            return value
        whole = _gathered(value.detach())
        return whole.cpu() if self.is_lead else None  # one whole tensor at a time, but on the lead

    def _sharded(self) -> Iterator[FSDPModule]:
        return (module for module in self._model.modules() if isinstance(module, FSDPModule))

    def _reshard(self) -> None:
        """A forward pass without a backward leaves whole copies in the place of the parameters."""
        for module in self._sharded():
            module.reshard()


def _local(tensor: Tensor) -> Tensor:
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local


def _cut(value: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, without communication: all ranks have it."""
    if not isinstance(like, DTensor):
        return value.to(like.device)
    mesh = like.device_mesh
    value = value.to(mesh.device_type)
    return distribute_tensor(value, mesh, like.placements, src_data_rank=None).to(like.device)


def _gathered(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    mesh_tensor = tensor.to(tensor.device_mesh.device_type)
    assert isinstance(mesh_tensor, DTensor)
    whole: Tensor = mesh_tensor.full_tensor()
    return whole
