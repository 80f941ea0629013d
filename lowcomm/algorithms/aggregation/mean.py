"""The token-weighted mean, DiLoCo's own rule (arXiv:2311.08105).

    mean = sum_i w_i g_i          w_i = tokens_i / sum(tokens), rounded to fp32

Optimal where all are honest; a single liar moves it wherever it likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lowcomm.methods import Spec


def weighted_mean(parts: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Sum of share * part in the given order, fp32, multiply and add apart (no fused rounding).

    Overwrites the parts.
    """
    total = parts[0].mul_(shares[0])
    for part, share in zip(parts[1:], shares[1:], strict=True):
        total.add_(part.mul_(share))
    return total


@dataclass(frozen=True)
class Mean:
    """The rule that runs where no other is chosen."""

    @property
    def settings(self) -> dict[str, float | str]:
        return {"name": "mean"}

    @property
    def min_participants(self) -> int:
        return 1

    def combine(self, parts: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        return weighted_mean(parts, shares)


SPEC = Spec(name="mean", make=Mean, about="weighted by tokens")
