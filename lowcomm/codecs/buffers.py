"""What all codecs ask of the tensors and payloads that they are given.

Payloads are little-endian, and so are all machines that torch supports for training; numbers go
between tensors and bytes without conversion.
"""

from __future__ import annotations

from math import isfinite

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowcomm.errors import CodecError, NonFiniteError

Buffer = bytes | bytearray | memoryview

PIECE_ELEMENTS = 1 << 16
"""Numbers worked on at a time: 256 KiB of fp32, so that every pass but the first finds them in cache."""

# the bits of +Inf and -Inf: NaNs lie above them, finite numbers of the same sign below
_POSITIVE_32, _NEGATIVE_32 = 0x7F80_0000, 0xFF80_0000
_POSITIVE_16, _NEGATIVE_16 = 0x7F80, 0xFF80


def checked_values(values: Tensor) -> Tensor:
    """`values` if a codec can encode it, contiguous.

    Raises:
        CodecError: not 1-D, not fp32, or neither on the host nor on a CUDA device.
    """
    _check(values, "a 1-D float32 tensor")
    return values.detach().contiguous()


def checked_out(out: Tensor, elements: int, name: str) -> Tensor:
    """`out` if a codec can write `elements` numbers into it.

    Args:
        name: what the argument is called, for the error.

    Raises:
        CodecError: not 1-D, not fp32, not contiguous, of another size, or on another kind of device.
    """
    _check(out, f"{name}: a 1-D float32 tensor")
    if out.numel() != elements or not out.is_contiguous():
        raise CodecError(
            f"expected {name}: {elements} contiguous elements, got {out.numel()} with stride {out.stride(0)}"
        )
    return out.detach()


def _check(tensor: Tensor, expected: str) -> None:
    if tensor.ndim != 1 or tensor.dtype != torch.float32 or tensor.device.type not in ("cpu", "cuda"):
        raise CodecError(
            f"expected {expected} on the host or a CUDA device, got "
            f"{tensor.ndim}-D {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
        )


def checked_payload(payload: Buffer, elements: int, expected_bytes: int, codec: str) -> memoryview:
    """A flat view of `payload` after its size was checked; nothing is allocated.

    Raises:
        CodecError: the payload has another size than `elements` numbers need.
    """
    view = memoryview(payload)
    if elements < 0:
        raise CodecError(f"{codec}: expected 0 or more elements, got {elements}")
    if view.nbytes != expected_bytes:
        raise CodecError(
            f"{codec}: expected {expected_bytes} bytes for {elements} elements, got {view.nbytes}"
        )
    return view.cast("B") if view.nbytes else memoryview(b"")


def all_finite_32(numbers: NDArray[np.float32]) -> bool:
    """Whether 1-D fp32 numbers are finite, without a temporary.

    A finite sum of squares says so in one fast pass; an infinite one may come of finite numbers, too, and
    then their bits are looked at.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if numbers.size == 0 or isfinite(np.dot(numbers, numbers)):
            return True
    positive, unsigned = numbers.view(np.int32).max(), numbers.view(np.uint32).max()
    return bool(positive < _POSITIVE_32 and unsigned < _NEGATIVE_32)


def all_finite_16(bits: NDArray[np.uint16]) -> bool:
    """Whether bfloat16 numbers, given as their bits, are finite."""
    if bits.size == 0:
        return True
    return bool(bits.view(np.int16).max() < _POSITIVE_16 and bits.max() < _NEGATIVE_16)


def refuse_non_finite(values: Tensor, start: int, codec: str) -> NonFiniteError:
    """The error that names the first NaN or Inf of `values`, of which something is known to be one."""
    index = start + int(torch.isfinite(values[start:]).logical_not().nonzero()[0])
    return NonFiniteError(f"{codec}: expected finite values, got {float(values[index])} at index {index}")
