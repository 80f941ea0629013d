"""Plain steps along the mean pseudo-gradient, as in FedAvg (McMahan et al. 2017, arXiv:1602.05629) with a
server learning rate, and as Lookahead's slow weights (Zhang et al. 2019, arXiv:1907.08610):

    x <- x - lr * g          g = mean pseudo-gradient = mean(anchor - local)

The sign: a pseudo-gradient points *against* the progress, so it is subtracted. With lr 1 the anchor becomes
the mean of the local parameters; below 1 it looks back, e.g. Lookahead's 0.5. There is nothing to remember:
no slots, so the outer state is the anchor alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowcomm.algorithms.outer_optimizers.base import blocks
from lowcomm.arguments import number
from lowcomm.methods import Spec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sgd:
    """SGD without momentum; `sgd` below builds it."""

    lr: float

    @property
    def settings(self) -> dict[str, float | str]:
        return {"name": "sgd", "lr": self.lr}

    def init(self, anchor: Tensor) -> dict[str, Tensor]:
        return {}

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

        for part in blocks(anchor.numel()):
            update = torch.mul(mean[part], self.lr, out=new_anchor[part])
            torch.sub(anchor[part], update, out=update)


def sgd(lr: float = 1.0) -> Sgd:
    """Plain averaging, or a step of another length along the mean.

    Args:
        lr: outer learning rate; 1 is plain averaging.

    Raises:
        ConfigError: it is no number in range.
    """
    return Sgd(lr=number("sgd.lr", lr, least=0))


SPEC = Spec(name="sgd", make=sgd, about="plain averaging, or a longer or shorter step along the mean")
