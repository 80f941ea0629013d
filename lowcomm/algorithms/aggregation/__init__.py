"""Aggregation rules, one file each; `by_name` makes the one that the configuration names."""

from __future__ import annotations

from lowcomm.algorithms.aggregation.base import Aggregation
from lowcomm.algorithms.aggregation.krum import Krum
from lowcomm.algorithms.aggregation.mean import Mean, weighted_mean
from lowcomm.algorithms.aggregation.median import CoordinateMedian
from lowcomm.algorithms.aggregation.norm_preserving import NormPreservingMean
from lowcomm.algorithms.aggregation.trimmed_mean import TrimmedMean
from lowcomm.errors import ConfigError

NAMES = ("mean", "norm_preserving", "trimmed_mean", "median", "krum")

__all__ = [
    "NAMES",
    "Aggregation",
    "CoordinateMedian",
    "Krum",
    "Mean",
    "NormPreservingMean",
    "TrimmedMean",
    "by_name",
    "weighted_mean",
]


def by_name(name: str, *, faulty: int = 1) -> Aggregation:
    """The rule with this name.

    Args:
        name: one of `NAMES`.
        faulty: liars that `trimmed_mean` and `krum` tolerate.

    Raises:
        ConfigError: there is no such rule.
    """
    if name == "mean":
        return Mean()
    if name == "norm_preserving":
        return NormPreservingMean()
    if name == "trimmed_mean":
        return TrimmedMean(faulty)
    if name == "median":
        return CoordinateMedian()
    if name == "krum":
        return Krum(faulty)
    raise ConfigError(f"aggregation: expected one of {', '.join(NAMES)}, got {name!r}")
