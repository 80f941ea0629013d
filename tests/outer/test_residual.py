"""Error feedback: what is lost is sent later, on whatever range and from whichever peer."""

from __future__ import annotations

import itertools

import pytest
import torch

from lowcomm.outer.residual import Residual


def residual() -> Residual:
    """Of 8 numbers, of which this peer reduced 2..5 last."""
    return Residual(torch.arange(8.0), torch.tensor([10.0, 20.0, 30.0, 40.0]), 2)


@pytest.mark.parametrize("reduced", [(2, 6), (0, 4), (4, 8), (0, 8), (0, 0), (6, 8)])
@pytest.mark.parametrize("cuts", [(0, 8), (0, 3, 8), (0, 2, 4, 6, 8)])
def test_what_the_means_lost_comes_back_once(reduced: tuple[int, int], cuts: tuple[int, ...]) -> None:
    share, kept = 0.25, residual()
    total = torch.zeros(8)
    for start, stop in itertools.pairwise(cuts):
        own = kept.for_part(start, stop, reduced, share) - kept.sent[start:stop]
        total[start:stop] += share * own
    start, stop = reduced
    added = kept.for_mean(start, stop) if stop > start else None
    if added is not None:
        total[start:stop] += added
    torch.testing.assert_close(total, torch.tensor([0.0, 0, 10, 20, 30, 40, 0, 0]))


def test_a_peer_without_a_share_adds_only_its_own() -> None:
    assert torch.equal(residual().for_part(0, 8, (0, 0), 0.0), torch.arange(8.0))
