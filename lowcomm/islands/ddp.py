"""An island of several ranks that hold the whole model each: DistributedDataParallel.

The CUDA and NCCL paths are written for GPUs and were not run on one here.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lowcomm.islands.parameters import COMPILED
from lowcomm.islands.ranks import RanksIsland, require_equal_models


def data_parallel(model: nn.Module) -> DistributedDataParallel | None:
    """The DistributedDataParallel that `model` is, compiled or not; None if it is none."""
    bare = getattr(model, COMPILED, model)
    return bare if isinstance(bare, DistributedDataParallel) else None


class DDPIsland(RanksIsland):
    """Ranks whose parameters are equal at every inner step; the first one leads. An `Island`.

    Args:
        model: a module, which is wrapped, or a DistributedDataParallel.
        optimizers: the inner optimizers of this rank.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        wrapped = data_parallel(model)
        if wrapped is None:
            device = next(model.parameters()).device
            require_equal_models(model)
            wrapped = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
            model = wrapped
        self._wrapped = wrapped
        super().__init__(model, optimizers)

    @property
    def bare_model(self) -> nn.Module:
        bare: nn.Module = self._wrapped.module
        return bare

    def no_sync(self) -> AbstractContextManager[None]:
        """DDP's own."""
        quiet: AbstractContextManager[None] = self._wrapped.no_sync()
        return quiet
