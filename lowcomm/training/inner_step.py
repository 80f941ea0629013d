"""One inner step: the forward and backward passes of its micro-batches, then the inner optimizers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from lowcomm.arguments import show
from lowcomm.data.samples import Batch, map_batch
from lowcomm.errors import ModelError
from lowcomm.islands.base import Island
from lowcomm.tasks.base import Task


def inner_step(
    island: Island,
    task: Task,
    next_batch: Callable[[], Batch],
    *,
    micro_steps: int,
    clip_norm: float,
    autocast: bool,
) -> tuple[Tensor, Tensor]:
    """Train on `micro_steps` batches. Collective in the island.

    Args:
        task: says the loss of a batch.
        next_batch: this rank's samples, on any device.
        micro_steps: forward and backward passes before the optimizers' step.
        clip_norm: of the gradients, 0 = none.
        autocast: bfloat16, unless the engine casts by itself.

    Returns:
        This rank's mean loss, and the L2 norm of the island's gradients before it was clipped: detached
        scalars on their devices.

    Raises:
        ModelError: the task's loss is no scalar that parameters can be trained by.
    """
    device = island.device
    total = torch.zeros((), dtype=torch.float32, device=device)
    for micro_step in range(micro_steps):
        batch = map_batch(lambda tensor: tensor.to(device), next_batch())
        with contextlib.nullcontext() if micro_step == micro_steps - 1 else island.no_sync():
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast and not island.casts):
                loss = checked_loss(task.loss(island.model, batch)) / micro_steps
            island.backward(loss)
        total += loss.detach()
    return total, island.update(clip_norm)


def checked_loss(loss: Tensor) -> Tensor:
    """The loss of a task, where gradients can follow from it.

    Raises:
        ModelError: it is none.
    """
    if not isinstance(loss, Tensor):
        raise ModelError(f"expected a scalar tensor as the task's loss of a batch, got {show(loss)}")
    if loss.ndim or not loss.is_floating_point():
        raise ModelError(
            "expected a scalar of a floating-point type as the task's loss of a batch, got a tensor of shape "
            f"{tuple(loss.shape)} and type {str(loss.dtype).removeprefix('torch.')}; take its mean"
        )
    if not loss.requires_grad:
        raise ModelError(
            "expected a loss that depends on the model's parameters, got one without gradients; compute it "
            "from what the model gives, without detach or no_grad"
        )
    return loss
