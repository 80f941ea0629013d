"""Multi-Krum (Blanchard et al. 2017, arXiv:1703.02757): average those that lie closest together.

    score_i = sum of |g_i - g_j|^2 over the n - faulty - 2 nearest j
    aggregate = token-weighted mean of the n - faulty contributions with the lowest scores

Needs n >= 2 * faulty + 3. Ties go to the earlier in roster order.

Distances are those of the chunk, since that is what one reducer sees. That is weaker than Krum over
whole vectors in one way: a liar that is honest in most chunks is dropped only where it lies, and
may be chosen in chunks where its lie is small. And it is coarser in another: the aggregate of one
round may come from different participants in different chunks. Each chunk keeps Krum's promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowcomm.algorithms.aggregation.base import check_count
from lowcomm.algorithms.aggregation.mean import weighted_mean
from lowcomm.methods import Spec


@dataclass(frozen=True)
class Krum:
    """Selection by distance.

    Attributes:
        faulty: how many liars are tolerated; so many contributions are left out.
    """

    faulty: int

    @property
    def settings(self) -> dict[str, float | str]:
        return {"name": "krum", "faulty": self.faulty}

    @property
    def min_participants(self) -> int:
        return 2 * self.faulty + 3

    def combine(self, parts: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        check_count(self, parts)
        chosen = self.select(parts)
        total = sum(shares[i] for i in chosen)
        if total <= 0.0:  # those chosen trained on nothing
            return weighted_mean([parts[i] for i in chosen], [1.0 / len(chosen)] * len(chosen))
        return weighted_mean([parts[i] for i in chosen], [shares[i] / total for i in chosen])

    def select(self, parts: Sequence[Tensor]) -> list[int]:
        """Places of the n - faulty contributions with the lowest scores, ascending."""
        count = len(parts)
        squares = [[0.0] * count for _ in range(count)]
        for i in range(count):
            for j in range(i):
                norm = float(torch.linalg.vector_norm(parts[i] - parts[j], dtype=torch.float64))
                squares[i][j] = squares[j][i] = norm * norm
        nearest = count - self.faulty - 2
        scores = [sum(sorted(row[:i] + row[i + 1 :])[:nearest]) for i, row in enumerate(squares)]
        return sorted(sorted(range(count), key=lambda i: (scores[i], i))[: count - self.faulty])


SPEC = Spec(name="krum", make=Krum, about="the contribution nearest to the others, against liars")
