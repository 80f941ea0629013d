"""Bring a new anchor into the local parameters."""

from __future__ import annotations

from torch import Tensor


def merge(anchor: Tensor, local: Tensor, merge_alpha: float) -> Tensor:
    """Streaming DiLoCo's merge (arXiv:2501.18512, eq. 4): alpha * local + (1 - alpha) * anchor.

    Args:
        anchor: 1-D fp32, the new anchor.
        local: 1-D fp32, the local parameters, `delay` steps after the round began.
        merge_alpha: weight kept on the local parameters; 0 gives the anchor itself, bit for bit.
    """
    if merge_alpha == 0.0:
        return anchor.clone()
    return local * merge_alpha + anchor * (1.0 - merge_alpha)


def rebase(old_anchor: Tensor, new_anchor: Tensor, local: Tensor) -> Tensor:
    """Move local parameters from one anchor to another, keeping their pseudo-gradient.

    With pseudo-gradient = anchor - local: the result r has new_anchor - r = old_anchor - local.
    """
    return new_anchor - (old_anchor - local)
