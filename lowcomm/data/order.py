"""Random orders that are the same on every machine.

NumPy and torch may change the streams of their generators between versions, and islands that
disagree about an order would train on each other's text. The output of blake3 never changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray


def random_words(count: int, *key: str | int) -> NDArray[np.uint64]:
    """(count,) uniform 64-bit numbers; a function of `key` alone."""
    stream = blake3(json.dumps(key).encode()).digest(length=8 * count)
    return np.frombuffer(stream, dtype="<u8").astype(np.uint64, copy=False)


def permutation(count: int, *key: str | int) -> NDArray[np.int64]:
    """(count,) the numbers 0..count-1 in a random order; a function of `count` and `key` alone."""
    return np.argsort(random_words(count, *key), kind="stable").astype(np.int64, copy=False)


def random_below(bound: int, *key: str | int) -> int:
    """A number 0 <= n < bound; a function of `bound` and `key` alone. The bias is below bound / 2**64."""
    return int(random_words(1, *key)[0]) % bound


class OrderOfEpoch:
    """The order of one epoch, kept until that of another is asked for.

    Args:
        order: (samples,) the places of an epoch's samples, in the order in which they are drawn.
    """

    def __init__(self, order: Callable[[int], NDArray[np.int64]]) -> None:
        self._make, self._epoch = order, -1

    def __call__(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """(stop - start,) the places of these."""
        if epoch != self._epoch:
            self._places, self._epoch = self._make(epoch), epoch
        return self._places[start:stop]
