"""Host memory for vectors that come and go with each round, used again instead of given back.

The state after a round takes as much memory as the one before it, which goes a moment later. An allocator
gives so much back to the system, and the next round finds pages that must be zeroed, and in a virtual machine
fetched from the host, first: that took longer than computing the state.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import Any

import torch
from torch import Tensor

KEPT = 3
"""Vectors whose memory is kept at first: a round makes a pseudo-gradient, an anchor and a momentum."""
IDLE_STEPS = 16
"""Inner steps without a new vector after which all of it is given back."""
FITS = 1.125
"""Memory may be larger than the vector by this factor: fragments differ a little in size."""


class _Free(deque[Any]):
    """Memory that nobody refers to.

    Attributes:
        most: as many pieces are kept.
    """

    most = KEPT


class RecycledMemory:
    """Gives out uninitialised tensors, and takes their memory back when nobody refers to them any more.

    May be used from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free = _Free()
        self._idle_steps = 0

    def empty(self, elements: int) -> Tensor:
        """A new 1-D fp32 tensor; views of it and arrays over it keep its memory from being used again."""
        with self._lock:
            self._idle_steps = 0
            memory = self._fitting(elements)
        if memory is None:
            memory = torch.empty(elements, dtype=torch.float32, device="cpu").numpy()
        # the tensor's storage holds this array, so it ends with the last view
        array = memory[:elements]
        weakref.finalize(array, _take_back, self._free, memory).atexit = False
        return torch.from_numpy(array)

    def keep(self, vectors: int) -> None:
        """Keep the memory of so many, which is what comes and goes with each round."""
        self._free.most = vectors

    def tidy(self) -> None:
        """An inner step has passed: give back what nobody has wanted for a while."""
        with self._lock:
            self._idle_steps += 1
            if self._idle_steps >= IDLE_STEPS:
                self._free.clear()

    def _fitting(self, elements: int) -> Any:
        """Free memory for so many numbers; what doesn't fit is let go, as it would never be used."""
        for _ in range(len(self._free)):
            memory = self._free.popleft()
            if elements <= memory.size <= FITS * elements:
                return memory
        return None


def _take_back(free: _Free, memory: Any) -> None:
    # the collector may run this at any moment, also while this thread holds the lock
    if len(free) < free.most:
        free.append(memory)
