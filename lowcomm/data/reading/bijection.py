"""A random order that nobody keeps: a keyed bijection on the numbers below a count.

A Feistel network on the bits of a number (Luby and Rackoff 1988, doi:10.1137/0217022): each round mixes half
of them into the other half,

    left, right <- right, left ^ F(right ^ key)       F: the finaliser of splitmix64 (Steele et al. 2014)

and cycle walking where the count is no power of two: what falls outside is sent through again until it falls
inside (Black and Rogaway 2002, doi:10.1007/3-540-45760-7_9), fewer than twice on average.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lowcomm.data.order import random_words

ROUNDS = 8
_Words = NDArray[np.uint64]


class Bijection:
    """0 <= n < count to another such number, each of them once; a function of `count` and `key` alone."""

    def __init__(self, count: int, *key: str | int) -> None:
        bits = max(2, (count - 1).bit_length())
        self._count, self._keys = count, random_words(ROUNDS, *key)
        self._left, self._right = bits // 2, bits - bits // 2

    def __call__(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """(numbers,) -> (numbers,)."""
        found = self._once(numbers.astype(np.uint64))
        while len(outside := np.flatnonzero(found >= self._count)):
            found[outside] = self._once(found[outside])
        return found.astype(np.int64)

    def _once(self, numbers: _Words) -> _Words:
        left_bits, right_bits = self._left, self._right
        left, right = numbers >> np.uint64(right_bits), numbers & np.uint64((1 << right_bits) - 1)
        for key in self._keys:
            mixed = _mix(right ^ key) >> np.uint64(64 - left_bits)
            left, right = right, left ^ mixed
            left_bits, right_bits = right_bits, left_bits
        return (left << np.uint64(right_bits)) | right


def _mix(words: _Words) -> _Words:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
