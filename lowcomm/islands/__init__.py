"""Islands: the only place that knows how a model is spread over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lowcomm.arguments import show

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
        ArgumentError: a model or an optimizer is something else.
        ModelError: nothing in the model is trainable, a parameter group is not of this model, or the model is
            spread over ranks in a way that no engine knows (FSDP1, tensor parallelism, pipelines).
        ConfigError: an engine of several ranks without an initialised torch.distributed, or one that
            the model is not made for.
    """
    import torch.distributed as dist

    from lowcomm.errors import ConfigError
    from lowcomm.islands.ddp import DDPIsland
    from lowcomm.islands.plain import PlainIsland
    from lowcomm.islands.sharding import made_for

    _require_module(model)
    ready = dist.is_available() and dist.is_initialized()
    found = made_for(model)
    if engine == "auto":
        engine = found or ("ddp" if ready and dist.get_world_size() > 1 else "plain")
    if engine not in ("plain", "ddp", "fsdp2", "deepspeed"):
        raise ConfigError(f"island.engine: expected auto, plain, ddp, fsdp2 or deepspeed, got {engine!r}")
    if found not in (None, engine):
        raise ConfigError(f"island.engine = {engine}: expected a model for it, got one made for {found}")
    optimizers = _optimizers(optimizer, needed=engine != "deepspeed")
    if engine == "plain":
        return PlainIsland(model, optimizers)
    require_ranks(engine)
    if engine == "ddp":
        return DDPIsland(model, optimizers)
    if found is None:
        how = "fully_shard(model)" if engine == "fsdp2" else "deepspeed.initialize(...)"
        raise ConfigError(
            f"island.engine = {engine}: expected what {how} made, got a bare {type(model).__name__}"
        )
    if engine == "fsdp2":
        from lowcomm.islands.fsdp2 import FSDP2Island

        return FSDP2Island(model, optimizers)
    from lowcomm.islands.deepspeed_zero import DeepSpeedIsland

    return DeepSpeedIsland(model)


def _require_module(given: object) -> None:
    """Refuse what is no model; of the two arguments swapped it says so.

    Raises:
        ArgumentError: it is none.
    """
    import torch

    from lowcomm.errors import ArgumentError

    if isinstance(given, torch.optim.Optimizer):
        raise ArgumentError(
            f"wrap_island: expected the model first, got {type(given).__name__}; swap the two: "
            "wrap_island(model, optimizer)"
        )
    if not isinstance(given, torch.nn.Module):
        raise ArgumentError(
            "wrap_island: model: expected a torch.nn.Module, or what deepspeed.initialize gave, got "
            f"{show(given)}"
        )


def _optimizers(given: object, *, needed: bool) -> list[torch.optim.Optimizer]:
    """One optimizer, or several, as a list.

    Raises:
        ArgumentError: it is something else, or none where one is `needed`.
    """
    import torch

    from lowcomm.errors import ArgumentError

    expected = "wrap_island: optimizer: expected a torch.optim.Optimizer, or a list of all for this model"
    build = "e.g. torch.optim.AdamW(model.parameters(), lr=1e-3)"
    if isinstance(given, torch.optim.Optimizer):
        return [given]
    if not isinstance(given, Iterable) or isinstance(given, str | torch.nn.Module | torch.Tensor):
        scheduled = getattr(given, "optimizer", None)
        advice = "pass its optimizer" if isinstance(scheduled, torch.optim.Optimizer) else build
        raise ArgumentError(f"{expected}, got {show(given)}; {advice}")
    found = list(given)
    for one in found:
        if not isinstance(one, torch.optim.Optimizer):
            raise ArgumentError(f"{expected}, got one with {show(one)}; {build}")
    if needed and not found:
        raise ArgumentError(f"{expected}, got none; {build}")
    return found
