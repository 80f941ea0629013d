"""Aggregation rules, one file each; `by_name` makes the one that the configuration names."""

from __future__ import annotations

from lowcomm.algorithms.aggregation.base import Aggregation
from lowcomm.methods import Methods

METHODS: Methods[Aggregation] = Methods(
    __name__,
    "shared.aggregation",
    {
        "mean": "mean",
        "norm_preserving": "norm_preserving",
        "trimmed_mean": "trimmed_mean",
        "median": "median",
        "krum": "krum",
    },
)
NAMES = METHODS.names

__all__ = ["METHODS", "NAMES", "Aggregation", "by_name"]


def by_name(name: str, *, faulty: int = 1) -> Aggregation:
    """The rule with this name.

    Args:
        name: one of `NAMES`.
        faulty: liars that `trimmed_mean` and `krum` tolerate.

    Raises:
        ConfigError: there is no such rule.
    """
    given = {"faulty": faulty} if "faulty" in METHODS.spec(name).parameters else {}
    return METHODS.make(name, given)
