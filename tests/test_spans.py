"""Spans are sets of numbers: everything is as Python's own sets have it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowcomm.errors import ProtocolError
from lowcomm.spans import Spans, beginning, common, flat, joined, parse_spans, size, without

PAIRS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)


def numbers(spans: Spans) -> set[int]:
    return {number for first, stop in spans for number in range(first, stop)}


@given(PAIRS, PAIRS, st.integers(0, 70))
def test_they_are_sets(one: list[tuple[int, int]], other: list[tuple[int, int]], count: int) -> None:
    a, b = joined(one), joined(other)
    assert numbers(a) == numbers(tuple(pair for pair in one if pair[0] < pair[1]))
    assert numbers(joined((*a, *b))) == numbers(a) | numbers(b)
    assert numbers(without(a, b)) == numbers(a) - numbers(b)
    assert numbers(common(a, b)) == numbers(a) & numbers(b)
    assert sorted(numbers(beginning(a, count))) == sorted(numbers(a))[:count]
    assert size(a) == len(numbers(a))
    for spans in (a, without(a, b), common(a, b), beginning(a, count)):
        assert joined(spans) == spans
        assert parse_spans("spans", flat(spans), len(spans)) == spans


@pytest.mark.parametrize("given_numbers", [[1], [2, 1], [1, 3, 3, 4], [1, 1], [0, 1, 2, 3, 4, 5]])
def test_what_is_no_set_is_refused(given_numbers: list[int]) -> None:
    with pytest.raises(ProtocolError, match="spans: expected at most 2 ascending spans"):
        parse_spans("spans", given_numbers, 2)
