"""What the bench of the overhead makes of its pairs."""

import pytest

from lowcomm.bench.overhead import median_interval


@pytest.mark.parametrize(
    ("count", "ends"),
    # ranks of a table of the sign test at 5 %: Conover 1999, Practical Nonparametric Statistics
    [
        (1, (1, 1)),
        (5, (1, 5)),
        (6, (1, 6)),
        (8, (1, 8)),
        (9, (2, 8)),
        (12, (3, 10)),
        (20, (6, 15)),
        (30, (10, 21)),
    ],
)
def test_the_interval_of_a_median_is_that_of_the_sign_test(count: int, ends: tuple[int, int]) -> None:
    values = [float(value) for value in range(1, count + 1)]
    assert median_interval(values[::-1]) == ends
