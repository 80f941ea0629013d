"""The coordinate-wise median (Yin et al. 2018, arXiv:1803.01498).

For each element the middle value, or the mean of the middle two. Tolerates any number of liars
below half without being told how many, at the price of more noise than the trimmed mean: where
honest values are skewed the median is biased, and it shrinks sparse updates. Unweighted, for the
reason given in trimmed_mean.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowcomm.algorithms.aggregation.base import check_count
from lowcomm.algorithms.aggregation.trimmed_mean import BLOCK_ELEMENTS
from lowcomm.methods import Spec


@dataclass(frozen=True)
class CoordinateMedian:
    """The middle value of each element."""

    @property
    def settings(self) -> dict[str, float | str]:
        return {"name": "median"}

    @property
    def min_participants(self) -> int:
        return 1

    def combine(self, parts: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        check_count(self, parts)
        out = torch.empty_like(parts[0])
        low, high = (len(parts) - 1) // 2, len(parts) // 2
        for start in range(0, out.numel(), BLOCK_ELEMENTS):
            rows = torch.stack([part[start : start + BLOCK_ELEMENTS] for part in parts]).sort(dim=0).values
            out[start : start + BLOCK_ELEMENTS] = rows[low].double().add_(rows[high]).mul_(0.5)
        return out


SPEC = Spec(name="median", make=CoordinateMedian, about="the median of each number, against liars")
