"""How the fast paths are compiled: numba, ahead of the first payload, the same result on every CPU.

- A kernel has one signature and is compiled when its codec's module is imported, that is when the codec
  is made, not in a round. The machine code is kept beside the source file, or in the user's cache where
  that can't be written; numba writes there by atomic replacement, so processes may start together.
- No `fastmath`: nothing is reassociated, and LLVM fuses a multiply and an add only where it is told it
  may. So each operation rounds once, as in IEEE 754, and all CPUs give the same bits.
- `nogil`: kernels run beside each other, and beside training, in a pool of threads.

numba's cache doesn't see changes in functions of other files, so a kernel calls none.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit, types

F = TypeVar("F", bound=Callable[..., Any])

VOID = types.void
INT32 = types.int32
INT64 = types.int64
FLOAT32 = types.float32
BOOL = types.boolean
READ_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
READ_UINT32 = types.Array(types.uint32, 1, "C", readonly=True)
READ_UINT16 = types.Array(types.uint16, 1, "C", readonly=True)
READ_FLOAT32 = types.Array(types.float32, 1, "C", readonly=True)
BYTES = types.Array(types.uint8, 1, "C")
UINT32 = types.Array(types.uint32, 1, "C")
INTS32 = types.Array(types.int32, 1, "C")
UINT16 = types.Array(types.uint16, 1, "C")
FLOATS32 = types.Array(types.float32, 1, "C")


def kernel(result: Any, *arguments: Any) -> Callable[[F], F]:
    """Compile a function of these numba types."""

    def compiled(function: F) -> F:
        jit: Any = njit  # its annotations know no list of signatures
        options = {"nogil": True, "error_model": "numpy", "boundscheck": False}
        signature = [result(*arguments)]
        try:
            made: F = jit(signature, cache=True, **options)(function)
        except RuntimeError as error:  # numba's word for: no folder that can be written
            if "cannot cache function" not in str(error):
                raise
            _tell_uncached()
            made = jit(signature, **options)(function)
        return made

    return compiled


@functools.cache  # once, not for each kernel
def _tell_uncached() -> None:
    warnings.warn(
        "compiled codecs can't be kept, neither beside lowcomm nor in the user's cache, so each start takes "
        "seconds longer; set NUMBA_CACHE_DIR to a folder that can be written",
        RuntimeWarning,
        stacklevel=3,
    )
