"""Outer optimizers, one file each: what steps the anchor along the mean pseudo-gradient. See base.py."""

from __future__ import annotations

from typing import Any

from lowcomm.algorithms.outer_optimizers.base import (
    CACHED_ELEMENTS,
    OuterOptimizer,
    blocks,
    slot_names,
)
from lowcomm.methods import Methods

METHODS: Methods[OuterOptimizer] = Methods(
    __name__,
    "shared.outer",
    {
        "nesterov": "nesterov",
        "adam": "adam",
        "schedule_free": "schedule_free",
        "sgd": "sgd",
    },
)

__all__ = ["CACHED_ELEMENTS", "METHODS", "OuterOptimizer", "blocks", "by_name", "slot_names"]


def by_name(name: str, **parameters: Any) -> OuterOptimizer:
    """The outer optimizer that `shared.outer.name` asks for.

    Args:
        name: one of `METHODS.names`.
        parameters: those of its factory; what is not given is as the method has it by default.

    Raises:
        ConfigError: there is no such method, or it has no such parameter, or the value is none.
    """
    return METHODS.make(name, parameters)
