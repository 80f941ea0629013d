"""What an island puts into a round: anchor - local, of one fragment; refused where training has diverged."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from lowcomm.algorithms.fragments import Fragment, named_parts
from lowcomm.errors import LossError
from lowcomm.islands.base import Parameters
from lowcomm.islands.vectors import Vector, spans

LARGEST_NORM = 1e18
"""Of a pseudo-gradient. Beyond it training has diverged, and squares are soon no fp32 numbers any more."""


def pseudo_gradient(
    parameters: Parameters, fragment: Fragment, anchor: Vector | None, inner_step: int
) -> tuple[Tensor, float]:
    """The pseudo-gradient and its L2 norm; empty and 0 but on the lead. Collective.

    Args:
        anchor: what the local parameters started from; on the lead.
        inner_step: for the error.

    Raises:
        LossError: the local parameters have diverged, so there is nothing to contribute.
    """
    values = parameters.read(fragment.tensors)
    norms = []
    if anchor is not None:
        for start, stop in spans(fragment.elements):
            part = values[start:stop]
            torch.sub(anchor.load(start, stop), part, out=part)
            norms.append(float(part.norm()))
    norm = math.hypot(*norms)
    usable = norm <= LARGEST_NORM  # NaN is not
    if parameters.any_rank(not usable):  # other ranks than the lead have read nothing, and stop with it
        where = f"inner step {inner_step}"
        if usable:
            raise LossError(
                f"{where}: the island's lead rank found a parameter that has diverged, and says which; "
                "this rank stops with it"
            )
        raise LossError(
            f"{where}: {_what_diverged(named_parts(parameters.layout, fragment, values))}; nothing was "
            "sent. Lower the inner learning rate, or resume from the last checkpoint"
        )
    return values, norm


def _what_diverged(parts: Iterable[tuple[str, Tensor]]) -> str:
    """The parameter that is not finite, or else has moved most, in words."""
    furthest, most = "", -1.0
    for name, part in parts:
        norm = float(torch.linalg.vector_norm(part, dtype=torch.float64))
        if not math.isfinite(norm):
            return f"parameter {name} is not finite any more"
        if norm > most:
            furthest, most = name, norm
    return (
        f"parameter {furthest} has diverged: it is {most:.3g} away from the anchor (L2 norm), expected at "
        f"most {LARGEST_NORM:.0e} of all together"
    )
