"""The learning rate as a function of global progress: linear warm-up, then a cosine.

All islands count the same inner steps, a late joiner too, so all have the same learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch


def lr_factor(inner_step: int, total_steps: int, warmup_fraction: float, final_fraction: float) -> float:
    """Learning rate / peak for the step after `inner_step` steps.

    Args:
        inner_step: steps done, on the swarm's count.
        total_steps: `train.steps`.
        warmup_fraction: part of `total_steps` with rising learning rate.
        final_fraction: learning rate / peak at the end of the cosine.
    """
    warmup_steps = max(1, round(warmup_fraction * total_steps))
    if inner_step < warmup_steps:
        return (inner_step + 1) / warmup_steps
    progress = min(1.0, (inner_step - warmup_steps) / max(1, total_steps - warmup_steps))
    return final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_lr(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's learning rate to `factor` times its `peak_lr`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]
