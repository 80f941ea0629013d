"""Nesterov momentum as in `torch.optim.SGD(nesterov=True)`, which DiLoCo (arXiv:2311.08105) uses:

    m <- mu * m + g
    x <- x - lr * (g + mu * m)          g = mean pseudo-gradient = mean(anchor - local)

The sign: a pseudo-gradient points *against* the progress, as a gradient does, so it is subtracted. One slot,
`momentum`: m.

Pseudo-gradients that point the same way add up to lr / (1 - mu) of one: 7 with the paper's 0.7 and 0.9,
which was tuned for hundreds of outer steps. The first ones of a run point the same way, so a run of a few
outer steps overshoots, and ends worse than an island alone. With `auto` a run begins as plain averaging,
which can't, and the momentum warms up, as Nesterov's own sequence does (doi:10.1007/978-1-4419-8853-9;
Sutskever et al. 2013 for deep networks), while the learning rate falls to the paper's:

    mu(t) = 0.9 * (t - 1) / (t - 1 + WARM_UP)        lr(t) = 1 - (1 - 0.7) * mu(t) / 0.9

Outer step t is counted from 1, so the length of the run need not be known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lowcomm.algorithms.outer_optimizers.base import blocks
from lowcomm.arguments import plain
from lowcomm.errors import ConfigError
from lowcomm.methods import Spec

if TYPE_CHECKING:
    from torch import Tensor

LR, MOMENTUM = 0.7, 0.9
"""DiLoCo's, which `auto` approaches."""
WARM_UP = 50
"""Outer steps after which the momentum has come half of the way."""


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

    def init(self, anchor: Tensor) -> dict[str, Tensor]:
        return {"momentum": anchor.new_zeros(anchor.shape)}

    def step(
        self,
        anchor: Tensor,
        slots: Mapping[str, Tensor],
        mean: Tensor,
        new_anchor: Tensor,
        new_slots: Mapping[str, Tensor],
        outer_step: int,
    ) -> None:
        import torch

        lr, decay = self.at(outer_step)
        momentum, new_momentum = slots["momentum"], new_slots["momentum"]
        for part in blocks(anchor.numel()):
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


SPEC = Spec(name="nesterov", make=nesterov, about="SGD with Nesterov momentum, DiLoCo's")
