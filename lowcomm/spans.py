"""Sets of numbers as spans: who has trained on which samples is a few of these, however many samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, pairwise

from lowcomm.errors import ProtocolError

Spans = tuple[tuple[int, int], ...]
"""(first, stop) of each, ascending, none empty, none touching the next."""


def joined(pairs: Iterable[tuple[int, int]]) -> Spans:
    """All numbers of some spans, which may overlap, as a set."""
    found: list[tuple[int, int]] = []
    for first, stop in sorted(pairs):
        if stop <= first:
            continue
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], stop)
        else:
            found.append((first, stop))
    return tuple(found)


def without(spans: Spans, others: Spans) -> Spans:
    """The numbers of one set that another one lacks."""
    found, at = [], 0
    for first, stop in spans:
        while at < len(others) and others[at][1] <= first:
            at += 1
        look = at
        while first < stop:
            if look == len(others) or others[look][0] >= stop:
                found.append((first, stop))
                break
            begin, end = others[look]
            if first < begin:
                found.append((first, begin))
            first, look = end, look + 1
    return tuple(found)


def common(spans: Spans, others: Spans) -> Spans:
    """The numbers that both sets have."""
    return without(spans, without(spans, others))


def size(spans: Spans) -> int:
    """How many numbers a set has."""
    return sum(stop - first for first, stop in spans)


def beginning(spans: Spans, count: int) -> Spans:
    """The first so many numbers of a set."""
    found = []
    for first, stop in spans:
        if count <= 0:
            break
        found.append((first, min(stop, first + count)))
        count -= stop - first
    return tuple(found)


def flat(spans: Spans) -> list[int]:
    """As they travel: first, stop, first, stop ..."""
    return list(chain.from_iterable(spans))


def parse_spans(where: str, numbers: Sequence[int], most: int) -> Spans:
    """Check and build a set from what `flat` gives.

    Args:
        most: spans that it may have.

    Raises:
        ProtocolError: it is none, or has more.
    """
    if len(numbers) % 2 or len(numbers) > 2 * most or any(a >= b for a, b in pairwise(numbers)):
        raise ProtocolError(f"{where}: expected at most {most} ascending spans, [first, stop, ...]")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))
