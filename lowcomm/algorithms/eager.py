"""Eager mode: an island goes on from a preview of the outer step while the round is under way.

"Eager Updates for Overlapped Communication and Computation in DiLoCo" (Kale, Douillard, Donchev 2025,
arXiv:2502.12996): over a long link the local parameters would wait many steps for their outer step, so
the island takes it at once, with its own pseudo-gradient where the mean will be.

    sent    = anchor - g                         the local parameters when the round begins; g = own
    ahead   = merge(outer(anchor, g), sent)      `merge` with `merge_alpha`, as at the end of the round
    shift   = ahead - sent
    x       = ahead + inner steps                while the round is under way
    x      <- x - shift                          when it ends, and then as without the preview: merged
                                                 with the new anchor, or left where nothing was committed

The shift is taken back before anything else, so that anchor - local never has the outer step in it,
and what is committed is what would be without the preview. Only local parameters move: the anchor and
the slots of the outer optimizer stay as they are.

The paper, whose rounds take a whole period, mixes the own pseudo-gradient with the others' of the round
before; here that one is in the anchor already when the next begins.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lowcomm.algorithms.merge import merge
from lowcomm.algorithms.outer_optimizers import CACHED_ELEMENTS, OuterOptimizer, blocks


def run_ahead(
    optimizer: OuterOptimizer,
    anchor: Tensor,
    slots: Mapping[str, Tensor],
    own: Tensor,
    merge_alpha: float,
    outer_step: int,
) -> Tensor:
    """The local parameters that the round would end with if all islands had sent what this one has.

    Args:
        anchor, slots: 1-D fp32, as the round finds them; not changed.
        own: 1-D fp32, this island's pseudo-gradient, anchor - local.
        merge_alpha: see `merge`.
        outer_step: the one that the round is for, counted from 1.
    """
    ahead = torch.empty_like(anchor)
    scratch = {name: anchor.new_empty(min(CACHED_ELEMENTS, anchor.numel())) for name in slots}
    for part in blocks(anchor.numel()):
        stepped, sent = ahead[part], anchor[part] - own[part]
        before = {name: slot[part] for name, slot in slots.items()}
        scratched = {name: slot[: stepped.numel()] for name, slot in scratch.items()}
        optimizer.step(anchor[part], before, own[part], stepped, scratched, outer_step)
        stepped.copy_(merge(stepped, sent, sent, merge_alpha))
    return ahead
