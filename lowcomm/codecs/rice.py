"""Sorted indices as Golomb-Rice coded gaps.

Golomb (1966), Rice (1979): a gap g >= 0 between two indices (what lies between them) is written as
g >> r in unary (zeros, then a one) and the lower r bits as they are, lowest bit first. For each chunk
the r of 0..7 that needs the fewest bits is chosen and precedes it in 3 bits; chunks follow each other
without padding, and the last byte is filled with zeros.

For 64 indices out of 4096 at random this takes 7.5 bits each, where the entropy is 7.36; clustered ones
take fewer. None takes more than 8: with r = 5 that is 6 bits and the gaps' sum, at most 4032, over 32.

The reader takes any bytes: what isn't the encoding of some indices, to the last bit, is refused. All in
integers, so it is the same on every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lowcomm.codecs.kernels import BYTES, INT64, READ_BYTES, READ_UINT16, UINT16, kernel

CHUNK, KEPT = 4096, 64
RATIO = CHUNK // KEPT
PARAMETER_BITS = 3
MOST_BITS_PER_INDEX = 8

ENDED, BEYOND, SURPLUS = -1, -2, -3
"""The reader's answers: the bytes end too early; an index is beyond its chunk; bytes are left over."""


def kept(elements: int) -> int:
    """Indices in all chunks: 64 of 4096, and one for each 64, or part of them, of a last chunk."""
    return -(-elements // RATIO)


def chunks(elements: int) -> int:
    """Chunks of 4096, the last one maybe shorter."""
    return -(-elements // CHUNK)


def most_bytes(elements: int) -> int:
    """What the indices of `elements` numbers take at most, wherever they are."""
    return -(-(PARAMETER_BITS * chunks(elements) + MOST_BITS_PER_INDEX * kept(elements)) // 8)


def least_bytes(elements: int) -> int:
    """What they take at least."""
    return -(-(PARAMETER_BITS * chunks(elements) + kept(elements)) // 8)


@kernel(INT64, READ_UINT16, BYTES)
def write_indices(indices: NDArray[np.uint16], stream: NDArray[np.uint8]) -> int:
    """Write the indices of all chunks, 64 a chunk, into `stream`, which is zero. Returns the bits used."""
    bit = np.int64(0)
    for first in range(0, indices.size, KEPT):
        last = min(first + KEPT, indices.size)
        best, fewest = 0, np.int64(1 << 40)
        for r in range(1 << PARAMETER_BITS):
            bits, following = np.int64(0), np.int64(0)
            for i in range(first, last):
                index = np.int64(indices[i])
                bits += 1 + r + ((index - following) >> r)
                following = index + 1
            if bits < fewest:
                best, fewest = r, bits
        for place in range(PARAMETER_BITS):
            stream[bit >> 3] |= np.uint8(((best >> place) & 1) << (bit & 7))
            bit += 1
        following = np.int64(0)
        for i in range(first, last):
            index = np.int64(indices[i])
            gap = index - following
            following = index + 1
            bit += gap >> best
            code = (1 | (gap & ((1 << best) - 1)) << 1) << (bit & 7)  # in two bytes at most
            stream[bit >> 3] |= np.uint8(code & 0xFF)
            if code > 0xFF:
                stream[(bit >> 3) + 1] |= np.uint8(code >> 8)
            bit += 1 + best
    return int(bit)


@kernel(INT64, READ_BYTES, INT64, UINT16)
def read_indices(stream: NDArray[np.uint8], elements: int, indices: NDArray[np.uint16]) -> int:
    """Read the indices of `elements` numbers. Returns 0, or why `stream` is refused."""
    bit, end = 0, 8 * stream.size
    for first in range(0, indices.size, KEPT):
        last = min(first + KEPT, indices.size)
        width = min(CHUNK, elements - first * RATIO)
        r = np.int64(0)
        for place in range(PARAMETER_BITS):
            if bit >= end:
                return ENDED
            r |= ((np.int64(stream[bit >> 3]) >> (bit & 7)) & 1) << place
            bit += 1
        following = np.int64(0)
        for i in range(first, last):
            quotient = 0
            while True:
                if bit >= end:
                    return ENDED
                one = (np.int64(stream[bit >> 3]) >> (bit & 7)) & 1
                bit += 1
                if one:
                    break
                quotient += 1
            gap = quotient << r
            for place in range(r):
                if bit >= end:
                    return ENDED
                gap |= ((np.int64(stream[bit >> 3]) >> (bit & 7)) & 1) << place
                bit += 1
            index = following + gap
            if index >= width:
                return BEYOND
            indices[i] = np.uint16(index)
            following = index + 1
    if (bit + 7) >> 3 != stream.size:
        return SURPLUS
    while bit < end:
        if (np.int64(stream[bit >> 3]) >> (bit & 7)) & 1:
            return SURPLUS
        bit += 1
    return 0


def write_reference(indices: list[int]) -> bytes:
    """What `write_indices` does, as a text of bits."""

    def code(gaps: list[int], r: int) -> str:
        return "".join("0" * (gap >> r) + "1" + f"{gap:016b}"[::-1][:r] for gap in gaps)

    bits = ""
    for first in range(0, len(indices), KEPT):
        chunk = indices[first : first + KEPT]
        gaps = [index - before - 1 for before, index in zip([-1, *chunk], chunk, strict=False)]
        best = min(range(1 << PARAMETER_BITS), key=lambda r: len(code(gaps, r)))
        bits += f"{best:03b}"[::-1] + code(gaps, best)
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[start : start + 8][::-1], 2) for start in range(0, len(bits), 8))
