"""The loss of a model on fixed windows of held-out text."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> float:
    """Mean cross-entropy over all windows, in nats per token.

    Args:
        model: called as `model(inputs, targets)`, gives the mean loss of a batch.
        batches: (inputs, targets), each (batch, context) int64.
        device: where the model is.
    """
    was_training = model.training
    model.eval()
    total, windows = 0.0, 0
    for inputs, targets in batches:
        loss = model(inputs.to(device), targets.to(device))
        total += float(loss) * len(inputs)
        windows += len(inputs)
    model.train(was_training)
    return total / windows
