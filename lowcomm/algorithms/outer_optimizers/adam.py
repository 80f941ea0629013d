"""Adam on the mean pseudo-gradient: FedAdam (Reddi et al. 2021, arXiv:2003.00295) with the bias correction
of Adam (Kingma and Ba 2015, arXiv:1412.6980), the outer Adam that DiLoCo (arXiv:2311.08105) compares with:

    m <- beta1 * m + (1 - beta1) * g          g = mean pseudo-gradient = mean(anchor - local)
    v <- beta2 * v + (1 - beta2) * g * g
    x <- x - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)          t = outer step, from 1

The sign: a pseudo-gradient points *against* the progress, so it is subtracted. Two slots: `first` (m) and
`second` (v). A step moves each element by about lr, however long the pseudo-gradient is, so lr is in units
of the parameters: much smaller than nesterov's. eps is FedAdam's tau, which says how small a
pseudo-gradient has to be to move its element less; FedAdam takes 1e-3, and beta2 = 0.99.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowcomm.algorithms.outer_optimizers.base import blocks
from lowcomm.arguments import number
from lowcomm.methods import Spec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Adam:
    """Outer Adam; `adam` below builds it."""

    lr: float
    beta1: float
    beta2: float
    eps: float

    @property
    def settings(self) -> dict[str, float | str]:
        return {"name": "adam", "lr": self.lr, "beta1": self.beta1, "beta2": self.beta2, "eps": self.eps}

    def init(self, anchor: Tensor) -> dict[str, Tensor]:
        return {"first": anchor.new_zeros(anchor.shape), "second": anchor.new_zeros(anchor.shape)}

    def step(
        self,
        anchor: Tensor,
        slots: Mapping[str, Tensor],
        mean: Tensor,
        new_anchor: Tensor,
        new_slots: Mapping[str, Tensor],
        outer_step: int,
    ) -> None:
        import numpy as np
        import torch

        rate = self.lr / (1.0 - power(self.beta1, outer_step))
        scale = 1.0 / math.sqrt(1.0 - power(self.beta2, outer_step))
        for part in blocks(anchor.numel()):
            g, first, second = mean[part], new_slots["first"][part], new_slots["second"][part]
            scratch = g * (1.0 - self.beta1)
            torch.mul(slots["first"][part], self.beta1, out=first).add_(scratch)
            torch.mul(g, g, out=scratch).mul_(1.0 - self.beta2)
            torch.mul(slots["second"][part], self.beta2, out=second).add_(scratch)
            np.sqrt(second.numpy(), out=scratch.numpy())  # torch's is not the nearest number everywhere
            scratch.mul_(scale).add_(self.eps)
            update = torch.mul(first, rate, out=new_anchor[part]).div_(scratch)
            torch.sub(anchor[part], update, out=update)


def adam(lr: float = 0.03, beta1: float = 0.9, beta2: float = 0.99, eps: float = 1e-3) -> Adam:
    """Outer Adam.

    Args:
        lr: about how far an outer step moves each parameter.
        beta1, beta2: what is kept of the first and second moment in each outer step.
        eps: added to the root of the second moment, in units of the parameters.

    Raises:
        ConfigError: one is no number in range.
    """
    return Adam(
        lr=number("adam.lr", lr, least=0),
        beta1=number("adam.beta1", beta1, least=0, below=1),
        beta2=number("adam.beta2", beta2, least=0, below=1),
        eps=number("adam.eps", eps, above=0),
    )


def power(base: float, exponent: int) -> float:
    """`base ** exponent` by squaring, in the same multiplications everywhere."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


SPEC = Spec(name="adam", make=adam, about="Adam, with two moments of each pseudo-gradient")
