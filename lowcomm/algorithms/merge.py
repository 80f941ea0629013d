"""Bring a new anchor into the local parameters."""

from __future__ import annotations

import torch
from torch import Tensor


def merge(anchor: Tensor, local: Tensor, sent: Tensor, merge_alpha: float) -> Tensor:
    """alpha * local + (1 - alpha) * (anchor + (local - sent)) = local + (1 - alpha) * (anchor - sent).

    Streaming DiLoCo (arXiv:2501.18512, eq. 4) merges alpha * local + (1 - alpha) * anchor, which gives up
    that part of the steps taken while the round was under way; here all of them are carried over. Without
    such steps (local = sent) both are the same.

    Args:
        anchor: 1-D fp32, the new anchor.
        local: 1-D fp32, the local parameters, `delay` steps after the round began.
        sent: 1-D fp32, the local parameters when it began.
        merge_alpha: weight kept on what the island had sent, against what the swarm made of it.
    """
    return local + (1.0 - merge_alpha) * (anchor - sent)


def movement_(
    out: Tensor, anchor: Tensor, old_anchor: Tensor, pseudo_gradient: Tensor, merge_alpha: float
) -> Tensor:
    """What `merge` adds to the local parameters, into `out`; with sent = old_anchor - pseudo_gradient.

    It doesn't depend on the steps taken since.
    """
    torch.sub(old_anchor, pseudo_gradient, out=out)
    torch.sub(anchor, out, out=out)
    return out.mul_(1.0 - merge_alpha) if merge_alpha else out


def rebase_(local: Tensor, old_anchor: Tensor, new_anchor: Tensor) -> Tensor:
    """Move local parameters from one anchor to another, in place, keeping their pseudo-gradient.

    With pseudo-gradient = anchor - local: the result r has new_anchor - r = old_anchor - local.
    """
    return local.sub_(old_anchor).add_(new_anchor)
