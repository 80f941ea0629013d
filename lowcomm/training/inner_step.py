"""One inner step: the forward and backward passes of its micro-batches, then the inner optimizers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from lowcomm.islands.base import Island


def inner_step(
    island: Island,
    next_batch: Callable[[], tuple[Tensor, Tensor]],
    *,
    micro_steps: int,
    clip_norm: float,
    autocast: bool,
) -> tuple[Tensor, Tensor]:
    """Train on `micro_steps` batches. Collective in the island.

    Args:
        next_batch: this rank's inputs and targets, each (windows, context) int64, on any device.
        micro_steps: forward and backward passes before the optimizers' step.
        clip_norm: of the gradients, 0 = none.
        autocast: bfloat16, unless the engine casts by itself.

    Returns:
        This rank's mean loss, and the L2 norm of the island's gradients before it was clipped: detached
        scalars on their devices.
    """
    device = island.device
    total = torch.zeros((), dtype=torch.float32, device=device)
    for micro_step in range(micro_steps):
        inputs, targets = next_batch()
        with contextlib.nullcontext() if micro_step == micro_steps - 1 else island.no_sync():
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast and not island.casts):
                loss = island.model(inputs.to(device), targets.to(device)) / micro_steps
            island.backward(loss)
        total += loss.detach()
    return total, island.update(clip_norm)
