"""Outer optimizers: they step the anchor along the mean pseudo-gradient.

Nesterov momentum as in `torch.optim.SGD(nesterov=True)`, which DiLoCo (arXiv:2311.08105) uses:

    m <- mu * m + g
    x <- x - lr * (g + mu * m)          g = mean pseudo-gradient = mean(anchor - local)

The sign: a pseudo-gradient points *against* the progress, as a gradient does, so it is subtracted.
The maths is elementwise fp32 with multiply and add apart (no fused multiply-add, which rounds once
instead of twice), so that every machine gets the same bits (guarantee G1).

Pseudo-gradients that point the same way add up to lr / (1 - mu) of one: 7 with the paper's 0.7 and 0.9,
which was tuned for hundreds of outer steps. The first ones of a run point the same way, so a run of a few
outer steps overshoots, and ends worse than an island alone. With `auto` a run begins as plain averaging,
which can't, and the momentum warms up, as Nesterov's own sequence does (doi:10.1007/978-1-4419-8853-9;
Sutskever et al. 2013 for deep networks), while the learning rate falls to the paper's:

    mu(t) = 0.9 * (t - 1) / (t - 1 + WARM_UP)        lr(t) = 1 - (1 - 0.7) * mu(t) / 0.9

Outer step t is counted from 1, so the length of the run need not be known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from lowcomm.arguments import plain
from lowcomm.errors import ConfigError

CACHED_ELEMENTS = 1 << 16
"""Five arrays of so many numbers stay in a core's cache from one pass to the next."""

LR, MOMENTUM = 0.7, 0.9
"""DiLoCo's, which `auto` approaches."""
WARM_UP = 50
"""Outer steps after which the momentum has come half of the way."""


class OuterOptimizer(Protocol):
    """A deterministic step of the anchor; its state is one fp32 number per element."""

    @property
    def settings(self) -> dict[str, float | str]:
        """Name and hyper-parameters; must be equal on all peers."""
        ...

    def step(
        self,
        anchor: Tensor,
        momentum: Tensor,
        mean: Tensor,
        new_anchor: Tensor,
        new_momentum: Tensor,
        outer_step: int,
    ) -> None:
        """Write the new anchor and momentum into the last two tensors; the others stay as they are.

        All 1-D fp32 of the same length. The step is elementwise, so it may be taken slice by slice.

        Args:
            outer_step: the one that this step leads to, counted from 1.
        """
        ...


@dataclass(frozen=True)
class Nesterov:
    """SGD with Nesterov momentum; `nesterov` below builds it."""

    lr: float | Literal["auto"]
    momentum: float | Literal["auto"]

    @property
    def settings(self) -> dict[str, float | str]:
        return {"name": "nesterov", "lr": self.lr, "momentum": self.momentum}

    def at(self, outer_step: int) -> tuple[float, float]:
        """Learning rate and momentum of an outer step, counted from 1."""
        warm = (outer_step - 1) / (outer_step - 1 + WARM_UP)
        momentum = MOMENTUM * warm if self.momentum == "auto" else self.momentum
        return 1.0 - (1.0 - LR) * momentum / MOMENTUM if self.lr == "auto" else self.lr, momentum

    def step(
        self,
        anchor: Tensor,
        momentum: Tensor,
        mean: Tensor,
        new_anchor: Tensor,
        new_momentum: Tensor,
        outer_step: int,
    ) -> None:
        lr, decay = self.at(outer_step)
        for start in range(0, anchor.numel(), CACHED_ELEMENTS):
            part = slice(start, start + CACHED_ELEMENTS)
            torch.mul(momentum[part], decay, out=new_momentum[part]).add_(mean[part])
            update = torch.mul(new_momentum[part], decay, out=new_anchor[part])
            update.add_(mean[part]).mul_(lr)
            torch.sub(anchor[part], update, out=update)


def nesterov(lr: float | Literal["auto"] = "auto", momentum: float | Literal["auto"] = "auto") -> Nesterov:
    """DiLoCo's outer optimizer.

    Args:
        lr: outer learning rate; the paper's is 0.7. auto = from 1 (with momentum 0) to 0.7 (with 0.9).
        momentum: the paper's is 0.9, with AdamW inside and hundreds of outer steps; 0.6 to 0.8 with Muon
            inside; 0 with lr 1 is plain averaging. auto = from 0 to 0.9 as the run goes on.

    Raises:
        ConfigError: neither `auto` nor a number in range.
    """
    lr, momentum = plain(lr), plain(momentum)  # type: ignore[assignment]
    if not _is_auto_or_in(lr, float("inf")):
        raise ConfigError(f'nesterov.lr: expected "auto" or a number of 0 or more, got {lr!r}')
    if not _is_auto_or_in(momentum, 1.0):
        raise ConfigError(f'nesterov.momentum: expected "auto" or 0 <= momentum < 1, got {momentum!r}')
    return Nesterov(lr=lr, momentum=momentum)


def _is_auto_or_in(value: object, stop: float) -> bool:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return 0.0 <= value < stop
    return value == "auto"
