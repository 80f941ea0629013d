"""How much of a fragment each participant reduces, by the bandwidth it has.

With n participants and S bytes, one that reduces the share s of them sends and receives
(1 - s) S + s (n - 1) S = S (1 + (n - 2) s). Its own contribution goes out whatever it reduces, so the slowest
link takes at least S over its bandwidth; what can be had is that it takes no longer. The shares here
minimise the longest (1 + (n - 2) s_i) / bandwidth_i with sum(s_i) = 1. With two participants all
shares cost the same.
"""

from __future__ import annotations

from collections.abc import Sequence

UNEQUAL = 2.0
"""Shares stay equal unless the fastest link has so many times the slowest one's bandwidth."""

LEAST_SHARE = 0.05
"""Of an equal share; a little goes everywhere, or a link that has become fast would never be noticed."""

_HALVINGS = 60


def reduce_shares(bandwidths: Sequence[float]) -> list[float]:
    """Shares, summing to 1, of participants with these bandwidths (any unit, all above 0)."""
    count = len(bandwidths)
    if count < 3 or max(bandwidths) < UNEQUAL * min(bandwidths):
        return [1.0 / count] * count
    least = LEAST_SHARE / count

    def shares(longest: float) -> list[float]:
        return [max(least, (longest * bandwidth - 1.0) / (count - 2)) for bandwidth in bandwidths]

    low, high = 0.0, (count - 1) / min(bandwidths)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(shares(middle)) >= 1.0 else (middle, high)
    found = shares(high)
    return [share / sum(found) for share in found]
