"""Outer optimizers: they step the anchor along the mean pseudo-gradient.

Nesterov momentum as in `torch.optim.SGD(nesterov=True)`, which DiLoCo (arXiv:2311.08105) uses:

    m <- momentum * m + g
    x <- x - lr * (g + momentum * m)          g = mean pseudo-gradient = mean(anchor - local)

The sign: a pseudo-gradient points *against* the progress, as a gradient does, so it is subtracted.
The maths is elementwise fp32 with multiply and add apart (no fused multiply-add, which rounds once
instead of twice), so that every machine gets the same bits (guarantee G1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lowcomm.errors import ConfigError

CACHED_ELEMENTS = 1 << 16
"""Five arrays of so many numbers stay in a core's cache from one pass to the next."""


class OuterOptimizer(Protocol):
    """A deterministic step of the anchor; its state is one fp32 number per element."""

    @property
    def settings(self) -> dict[str, float | str]:
        """Name and hyper-parameters; must be equal on all peers."""
        ...

    def step(
        self, anchor: Tensor, momentum: Tensor, mean: Tensor, new_anchor: Tensor, new_momentum: Tensor
    ) -> None:
        """Write the new anchor and momentum into the last two; the others stay as they are.

        All 1-D fp32 of the same length. The step is elementwise, so it may be taken slice by slice.
        """
        ...


@dataclass(frozen=True)
class Nesterov:
    """SGD with Nesterov momentum; `nesterov` below builds it."""

    lr: float
    momentum: float

    @property
    def settings(self) -> dict[str, float | str]:
        return {"name": "nesterov", "lr": self.lr, "momentum": self.momentum}

    def step(
        self, anchor: Tensor, momentum: Tensor, mean: Tensor, new_anchor: Tensor, new_momentum: Tensor
    ) -> None:
        for start in range(0, anchor.numel(), CACHED_ELEMENTS):
            part = slice(start, start + CACHED_ELEMENTS)
            torch.mul(momentum[part], self.momentum, out=new_momentum[part]).add_(mean[part])
            update = torch.mul(new_momentum[part], self.momentum, out=new_anchor[part])
            update.add_(mean[part]).mul_(self.lr)
            torch.sub(anchor[part], update, out=update)


def nesterov(lr: float = 0.7, momentum: float = 0.9) -> Nesterov:
    """DiLoCo's outer optimizer.

    Args:
        lr: outer learning rate; 0.6-0.7 for 2-4 islands, 0.8 from 8 up.
        momentum: 0.9 with AdamW inside, 0.6-0.8 with Muon inside; 0 with lr 1 is plain averaging.
    """
    if not lr >= 0.0:
        raise ConfigError(f"nesterov.lr: expected 0 or more, got {lr}")
    if not 0.0 <= momentum < 1.0:
        raise ConfigError(f"nesterov.momentum: expected 0 <= momentum < 1, got {momentum}")
    return Nesterov(lr=lr, momentum=momentum)
