"""Islands: the only place that knows how a model is spread over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lowcomm.islands.base import Island


def require_ranks(engine: str) -> None:
    """Refuse an engine of several ranks where torch.distributed is not set up.

    Raises:
        ConfigError: it is not.
    """
    import torch.distributed as dist

    from lowcomm.errors import ConfigError

    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            f"island.engine = {engine}: expected to run under torchrun, but torch.distributed is not set up"
        )


def wrap_island(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] = (),
    *,
    engine: str = "auto",
) -> Island:
    """Make an island of a model and its inner optimizers.

    Args:
        model: any module, on its device; sharded by `fully_shard`; or what `deepspeed.initialize` gave.
        optimizer: one, or all of several; none with DeepSpeed, whose engine holds its own.
        engine: `plain` (one rank), `ddp`, `fsdp2` or `deepspeed` (several under torchrun), or `auto`:
            what the model is made for, and `ddp` where torch.distributed has more than one rank.

    Raises:
        ModelError: nothing in the model is trainable, or a parameter group is not of this model.
        ConfigError: an engine of several ranks without an initialised torch.distributed, or one that
            the model is not made for.
    """
    import torch
    import torch.distributed as dist

    from lowcomm.errors import ConfigError
    from lowcomm.islands.ddp import DDPIsland, data_parallel
    from lowcomm.islands.plain import PlainIsland

    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
    ready = dist.is_available() and dist.is_initialized()
    made_for = None
    if data_parallel(model) is not None:
        made_for = "ddp"
    elif "FSDPModule" in {base.__name__ for module in model.modules() for base in type(module).__mro__}:
        made_for = "fsdp2"
    elif type(model).__module__.startswith("deepspeed."):
        made_for = "deepspeed"
    if engine == "auto":
        engine = made_for or ("ddp" if ready and dist.get_world_size() > 1 else "plain")
    if engine not in ("plain", "ddp", "fsdp2", "deepspeed"):
        raise ConfigError(f"island.engine: expected auto, plain, ddp, fsdp2 or deepspeed, got {engine!r}")
    if made_for not in (None, engine):
        raise ConfigError(f"island.engine = {engine}: expected a model for it, got one made for {made_for}")
    if engine == "plain":
        return PlainIsland(model, optimizers)
    require_ranks(engine)
    if engine == "ddp":
        return DDPIsland(model, optimizers)
    if made_for is None:
        how = "fully_shard(model)" if engine == "fsdp2" else "deepspeed.initialize(...)"
        raise ConfigError(
            f"island.engine = {engine}: expected what {how} made, got a bare {type(model).__name__}"
        )
    if engine == "fsdp2":
        from lowcomm.islands.fsdp2 import FSDP2Island

        return FSDP2Island(model, optimizers)
    from lowcomm.islands.deepspeed_zero import DeepSpeedIsland

    return DeepSpeedIsland(model)
