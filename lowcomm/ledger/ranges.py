"""How a fragment is cut: the reducers' ranges, and the chunks that are encoded apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from lowcomm.errors import ProtocolError

MAX_CHUNKS = 1 << 16


def check_cut(stops: Sequence[int], chunk_elements: int, elements: int) -> None:
    """See whether ranges and chunks are those of a fragment, before anything is made for them.

    Raises:
        ProtocolError: they cover another number of elements, or there are too many chunks.
    """
    if stops[-1] != elements or -(-elements // chunk_elements) + len(stops) > MAX_CHUNKS:
        raise ProtocolError(
            f"expected {elements} elements in at most {MAX_CHUNKS} chunks, got {stops[-1]} in chunks of "
            f"{chunk_elements}"
        )


def stops_of(elements: int, shares: Sequence[float], block_elements: int) -> tuple[int, ...]:
    """Ends of ranges of `elements` numbers, in these shares (sum 1), cut at multiples of a block."""
    blocks = -(-elements // block_elements)
    ends = [round(blocks * total, 6) for total in accumulate(shares)]
    return (*(min(elements, int(end) * block_elements) for end in ends[:-1]), elements)


def range_of(stops: Sequence[int], index: int) -> tuple[int, int]:
    """(start, stop) of one participant's range."""
    return (stops[index - 1] if index else 0), stops[index]


def chunks_of(stops: Sequence[int], chunk_elements: int) -> list[tuple[int, int, int]]:
    """All chunks as (range index, start, stop), in the order of the encoded update."""
    chunks = []
    start = 0
    for index, stop in enumerate(stops):
        while start < stop:
            end = min(stop, start + chunk_elements)
            chunks.append((index, start, end))
            start = end
    return chunks
