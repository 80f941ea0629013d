"""The learning rate as a function of global progress: a linear warm-up, then a schedule.

All islands count the same inner steps, a late joiner too, so all have the same learning rate. Where they
take unlike numbers of steps, global progress is the tokens that the ledger credits to all of them, and
what has been trained on since.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the configuration lists the schedules without it
    import torch

AFTER_WARMUP: Mapping[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
    "wsd": lambda progress: 1.0 - math.sqrt(progress),
    "constant": lambda progress: 1.0,
}
"""What is left of the way from the peak to the last rate, by the part of the decay that is over.

Warm-up, stable, decay (wsd): Hu et al. 2024, arXiv:2404.06395; that 1 - sqrt is the better decay for it:
Hägele et al. 2024, arXiv:2405.18392.
"""
SCHEDULES = tuple(AFTER_WARMUP)


@dataclass(frozen=True, kw_only=True)
class LrSchedule:
    """Learning rate / peak by progress.

    Attributes:
        name: one of `SCHEDULES`.
        warmup_fraction: part of the run with rising learning rate.
        decay_fraction: with wsd the last part of the run, in which the rate falls; with the others it falls
            from the warm-up on.
        final_fraction: learning rate / peak at the end; with constant it is 1.
    """

    name: str = "cosine"
    warmup_fraction: float
    decay_fraction: float = 1.0
    final_fraction: float

    def factor(self, done: int, whole: int) -> float:
        """Learning rate / peak for the next step.

        Args:
            done: inner steps on the swarm's count before this one; or tokens of all islands, with all but
                one of those of this step.
            whole: `train.steps`, or `train.tokens`.
        """
        warmup = max(1, round(self.warmup_fraction * whole))
        if done < warmup:
            return (done + 1) / warmup
        begins = max(warmup, whole - round(self.decay_fraction * whole)) if self.name == "wsd" else warmup
        progress = min(1.0, max(0, done - begins) / max(1, whole - begins))
        return self.final_fraction + (1.0 - self.final_fraction) * AFTER_WARMUP[self.name](progress)


def set_lr(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's learning rate to `factor` times its `peak_lr`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]
