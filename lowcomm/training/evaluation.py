"""What a task says of its model on fixed samples that nobody trains on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from lowcomm.arguments import show
from lowcomm.data.samples import Batch, count_samples, map_batch
from lowcomm.errors import ModelError
from lowcomm.tasks.base import Task

LOSS = "loss"


@torch.no_grad()
def evaluate(
    task: Task, model: nn.Module, batches: Iterable[Batch], device: torch.device
) -> dict[str, float]:
    """Means over all samples: `loss`, and what the task tells beside it. Empty if there are no batches.

    Args:
        device: where the model is.

    Raises:
        ModelError: the task tells no loss.
    """
    was_training = model.training
    model.eval()
    totals: dict[str, float] = {}
    samples = 0
    for batch in batches:
        told = task.evaluate(model, map_batch(lambda tensor: tensor.to(device), batch))
        if LOSS not in told:
            raise ModelError(f'expected evaluate to tell at least "{LOSS}", got {show(sorted(told))}')
        count = count_samples(batch)
        for name, value in told.items():
            totals[name] = totals.get(name, 0.0) + float(value) * count
        samples += count
    model.train(was_training)
    return {name: total / samples for name, total in totals.items()}
