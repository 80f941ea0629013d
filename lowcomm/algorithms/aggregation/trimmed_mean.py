"""The coordinate-wise trimmed mean (Yin et al. 2018, arXiv:1803.01498).

For each element: drop the `faulty` largest and the `faulty` smallest values, average the rest. With
at most `faulty` liars among n >= 2 * faulty + 1 contributions each element lies within the range of
the honest ones.

Unweighted on purpose: the token count is a claim of who sends it, and a weight that a liar chooses
undoes the trimming. Islands of very unlike speed therefore count the same here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowcomm.algorithms.aggregation.base import check_count
from lowcomm.methods import Spec

BLOCK_ELEMENTS = 1 << 15
"""Elements sorted at a time, so that n rows of them stay in the cache."""


@dataclass(frozen=True)
class TrimmedMean:
    """Mean without the extremes.

    Attributes:
        faulty: how many liars are tolerated; so many are dropped at each end.
    """

    faulty: int

    @property
    def settings(self) -> dict[str, float | str]:
        return {"name": "trimmed_mean", "faulty": self.faulty}

    @property
    def min_participants(self) -> int:
        return 2 * self.faulty + 1

    def combine(self, parts: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        check_count(self, parts)
        out = torch.empty_like(parts[0])
        for start in range(0, out.numel(), BLOCK_ELEMENTS):
            rows = torch.stack([part[start : start + BLOCK_ELEMENTS] for part in parts])
            kept = rows.sort(dim=0).values[self.faulty : len(parts) - self.faulty]
            # fp32 sums of values near the largest float would overflow
            out[start : start + BLOCK_ELEMENTS] = kept.double().mean(dim=0)
        return out


SPEC = Spec(name="trimmed_mean", make=TrimmedMean, about="without the extremes, against liars")
