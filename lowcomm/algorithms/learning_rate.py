"""The learning rate as a function of global progress: linear warm-up, then a cosine.

All islands count the same inner steps, a late joiner too, so all have the same learning rate. Where they
take unlike numbers of steps, global progress is the tokens that the ledger credits to all of them, and
what has been trained on since.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch


def lr_factor(done: int, whole: int, warmup_fraction: float, final_fraction: float) -> float:
    """Learning rate / peak for the next step.

    Args:
        done: inner steps on the swarm's count before this one; or tokens of all islands, with all but one
            of those of this step.
        whole: `train.steps`, or `train.tokens`.
        warmup_fraction: part of `whole` with rising learning rate.
        final_fraction: learning rate / peak at the end of the cosine.
    """
    warmup = max(1, round(warmup_fraction * whole))
    if done < warmup:
        return (done + 1) / warmup
    progress = min(1.0, (done - warmup) / max(1, whole - warmup))
    return final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_lr(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's learning rate to `factor` times its `peak_lr`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]
