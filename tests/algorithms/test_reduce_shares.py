"""Who reduces how much."""

from __future__ import annotations

import pytest

from lowcomm.algorithms.reduce_shares import LEAST_SHARE, reduce_shares
from lowcomm.ledger.ranges import range_of, stops_of


def longest(shares: list[float], bandwidths: list[float]) -> float:
    count = len(shares)
    return max((1 + (count - 2) * s) / b for s, b in zip(shares, bandwidths, strict=True))


@pytest.mark.parametrize("bandwidths", [[5.0], [1.0, 9.0], [1.0, 1.5, 1.9], [3.0] * 8])
def test_similar_links_and_pairs_share_equally(bandwidths: list[float]) -> None:
    assert reduce_shares(bandwidths) == [1 / len(bandwidths)] * len(bandwidths)


def test_a_slow_link_reduces_next_to_nothing() -> None:
    bandwidths = [100.0, 100.0, 100.0, 10.0]
    shares = reduce_shares(bandwidths)
    assert sum(shares) == pytest.approx(1.0)
    assert LEAST_SHARE / 4 * 0.9 < shares[3] < LEAST_SHARE / 4 * 1.1
    assert longest(shares, bandwidths) < 0.72 * longest([0.25] * 4, bandwidths)


def test_where_it_can_be_had_all_take_equally_long() -> None:
    bandwidths = [100.0, 200.0, 300.0]
    shares = reduce_shares(bandwidths)
    times = [(1 + s) / b for s, b in zip(shares, bandwidths, strict=True)]
    # the slowest sends its contribution longer than the others take for everything
    assert times[0] == max(times)
    assert times[1] == pytest.approx(times[2])


@pytest.mark.parametrize("elements", [0, 1, 64, 1000, 4097])
def test_ranges_cover_everything_and_end_at_blocks(elements: int) -> None:
    stops = stops_of(elements, [0.5, 0.1, 0.4], 64)
    assert stops[-1] == elements
    assert list(stops) == sorted(stops)
    assert all(stop % 64 == 0 or stop == elements for stop in stops)
    assert sum(stop - start for start, stop in (range_of(stops, i) for i in range(3))) == elements
