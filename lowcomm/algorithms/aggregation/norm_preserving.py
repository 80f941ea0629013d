"""A mean that keeps the norm: average the directions, then give them the average radius.

    u = sum_i w_i g_i / |g_i|          the mean direction
    r = sum_i w_i |g_i|                the mean radius
    aggregate = r u / |u|

The pseudo-gradients of M islands become nearly orthogonal from about 8 islands on, and their mean
then shrinks towards 1/sqrt(M) of their norm, so that the outer step does, too. Radius and direction
are averaged apart here, as in weight normalisation (Salimans and Kingma 2016, arXiv:1602.07868).
Where the contributions are parallel this is the mean itself.

Norms are those of the chunk, so the radius is restored chunk by chunk, which follows the layers
roughly. A contribution that is zero in the chunk has a radius and no direction. Where directions
cancel out (|u| < 1e-3) there is none to scale up, and the plain mean is used. It is no defence:
one island can still take its whole share of the direction, though not more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowcomm.algorithms.aggregation.mean import weighted_mean
from lowcomm.methods import Spec

CANCELLED = 1e-3
"""A mean of unit vectors shorter than this has lost its direction to rounding."""


@dataclass(frozen=True)
class NormPreservingMean:
    """Radial-directional mean, for many honest islands."""

    @property
    def settings(self) -> dict[str, float | str]:
        return {"name": "norm_preserving"}

    @property
    def min_participants(self) -> int:
        return 1

    def combine(self, parts: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        norms = [float(torch.linalg.vector_norm(part, dtype=torch.float64)) for part in parts]
        radius = sum(share * norm for share, norm in zip(shares, norms, strict=True))
        direction = torch.zeros_like(parts[0], dtype=torch.float64)
        for part, share, norm in zip(parts, shares, norms, strict=True):
            if norm > 0.0:
                direction.add_(part, alpha=share / norm)
        length = float(torch.linalg.vector_norm(direction))
        if length < CANCELLED:
            return weighted_mean(parts, shares)
        return direction.mul_(radius / length).float()


SPEC = Spec(
    name="norm_preserving",
    make=NormPreservingMean,
    about="the mean, of their own norm; for 8 islands and more",
)
