"""Schedule-Free SGD (Defazio et al. 2024, arXiv:2405.15682) on the mean pseudo-gradient: what is averaged
over the outer steps takes the place of a learning rate that falls.

    z <- z - lr * g                        g = mean pseudo-gradient = mean(anchor - local)
    x <- (1 - 1/t) * x + 1/t * z           t = outer step, from 1: the mean of all z so far
    y  = (1 - beta) * z + beta * x         the anchor, from which the islands train on

The sign: a pseudo-gradient points *against* the progress, so it is subtracted. One slot, `z`, which begins as
the anchor; x follows from y and z, so it is not kept, and the anchor steps by

    y <- y + (z - y) / t - lr * (1 - beta) * (1 - 1/t) * g          with the new z

The first outer step with lr 1 is plain averaging. The paper evaluates x. Here the anchor y is what is
evaluated and exported, as with all outer optimizers: with beta near 1 it is near x.
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
class ScheduleFree:
    """Schedule-Free SGD; `schedule_free` below builds it."""

    lr: float
    beta: float

    @property
    def settings(self) -> dict[str, float | str]:
        return {"name": "schedule_free", "lr": self.lr, "beta": self.beta}

    def init(self, anchor: Tensor) -> dict[str, Tensor]:
        return {"z": anchor.clone()}

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

        weight = 1.0 / outer_step
        own = self.lr * (1.0 - self.beta) * (1.0 - weight)
        for part in blocks(anchor.numel()):
            before, g, z, after = anchor[part], mean[part], new_slots["z"][part], new_anchor[part]
            scratch = g * self.lr
            torch.sub(slots["z"][part], scratch, out=z)
            torch.sub(z, before, out=after).mul_(weight).add_(before)
            after.sub_(torch.mul(g, own, out=scratch))


def schedule_free(lr: float = 1.0, beta: float = 0.9) -> ScheduleFree:
    """Schedule-Free SGD.

    Args:
        lr: outer learning rate of z; 1 begins as plain averaging.
        beta: how much of the average the anchor has; 1 trains from the average itself.

    Raises:
        ConfigError: one is no number in range.
    """
    return ScheduleFree(
        lr=number("schedule_free.lr", lr, least=0), beta=number("schedule_free.beta", beta, least=0, most=1)
    )


SPEC = Spec(
    name="schedule_free",
    make=schedule_free,
    about="Schedule-Free SGD: an average in place of a falling learning rate",
)
