"""The keyed bijection: each number once, for every count, and the same on any machine."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowcomm.data.reading.bijection import Bijection


@given(count=st.integers(1, 5_000), seed=st.integers(0, 2**31))
def test_each_number_comes_once(count: int, seed: int) -> None:
    mixed = Bijection(count, "test", seed)(np.arange(count))
    assert sorted(mixed.tolist()) == list(range(count))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 255, 256, 257, 65_535, 65_537])
def test_each_number_comes_once_around_powers_of_two(count: int) -> None:
    assert np.array_equal(np.sort(Bijection(count, 0)(np.arange(count))), np.arange(count))


@pytest.mark.parametrize(
    ("count", "first"),
    [
        (1_000, [487, 301, 169, 337, 331, 664]),
        (370_000_000_000, [189929145046, 229897648473, 5919447460, 99910761057, 365610919003, 282082729753]),
    ],
    ids=["thousand", "as-many-as-tokens-of-1b"],
)
def test_known_answers(count: int, first: list[int]) -> None:
    assert Bijection(count, "manifest", 0)(np.arange(6)).tolist() == first


def test_each_number_alone_is_as_among_others() -> None:
    mixed = Bijection(12_345, "test")
    numbers = np.array([17, 3, 12_344, 0])
    assert mixed(numbers).tolist() == [int(mixed(np.array([n]))[0]) for n in numbers]


def test_the_key_decides() -> None:
    numbers = np.arange(1_000)
    mixed = [Bijection(1_000, "test", seed)(numbers) for seed in range(20)]
    assert len({tuple(each.tolist()) for each in mixed}) == 20


def test_it_looks_random() -> None:
    """Neighbours part, and each eighth of the numbers is spread over all eighths."""
    count = 1 << 14
    mixed = Bijection(count, "test")(np.arange(count))
    table = np.histogram2d(np.arange(count), mixed, bins=8)[0]
    expected = count / 64
    assert ((table - expected) ** 2 / expected).sum() < 100  # chi-squared, 49 degrees of freedom
    assert (np.abs(np.diff(mixed)) < 16).mean() < 0.01
