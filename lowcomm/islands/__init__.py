"""Islands: the only place that knows how a model is spread over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lowcomm.islands.base import Island


def wrap_island(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    *,
    engine: str = "auto",
) -> Island:
    """Make an island of a model and its inner optimizers.

    Args:
        model: any module, on its device.
        optimizer: one, or all of several.
        engine: `plain` (one rank), `ddp` (several under torchrun), or `auto`: `ddp` where
            torch.distributed has more than one rank or the model is a DistributedDataParallel.

    Raises:
        ModelError: nothing in the model is trainable.
        ConfigError: `ddp` without an initialised torch.distributed, or `plain` with a model for it.
    """
    import torch
    import torch.distributed as dist

    from lowcomm.errors import ConfigError
    from lowcomm.islands.ddp import DDPIsland, data_parallel
    from lowcomm.islands.plain import PlainIsland

    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
    ready = dist.is_available() and dist.is_initialized()
    if engine == "auto":
        spread = data_parallel(model) is not None or (ready and dist.get_world_size() > 1)
        engine = "ddp" if spread else "plain"
    if engine == "plain":
        if data_parallel(model) is not None:
            raise ConfigError("island.engine = plain: expected a bare model, got a DistributedDataParallel")
        return PlainIsland(model, optimizers)
    if engine != "ddp":
        raise ConfigError(f"island.engine: expected auto, plain or ddp, got {engine!r}")
    if not ready:
        raise ConfigError(
            "island.engine = ddp: expected to run under torchrun, but torch.distributed is not set up"
        )
    return DDPIsland(model, optimizers)
