"""Codecs without blocks: fp32 as it is, and bfloat16.

fp32 payload: the numbers. bf16 payload: the upper 16 bits of each number, rounded to nearest, ties
to even (IEEE 754, 4.3.1); finite numbers too large for bfloat16 become its largest, so that no Inf
comes out of finite input. Decoding is exact, so it is the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lowcomm.codecs.buffers import (
    PIECE_ELEMENTS,
    Buffer,
    all_finite_16,
    all_finite_32,
    checked_payload,
    checked_values,
    refuse_non_finite,
)
from lowcomm.errors import CodecError

BF16_MAX = 3.3895313892515355e38  # (2 - 2**-7) * 2**127


@dataclass(frozen=True, slots=True)
class Fp32:
    """4 bytes per number, exact."""

    name: str = "fp32"
    topology: Literal["reduce_scatter"] = "reduce_scatter"
    block_elements: int = 1
    error_feedback: bool = False

    def max_payload_bytes(self, elements: int) -> int:
        return 4 * elements

    def encode(self, values: Tensor) -> memoryview:
        """A read-only view of `values` itself: leave them unchanged while the payload is in use."""
        values = checked_values(values)
        numbers = values.numpy()
        for start in range(0, numbers.size, PIECE_ELEMENTS):
            if not all_finite_32(numbers[start : start + PIECE_ELEMENTS]):
                raise refuse_non_finite(values, start, self.name)
        return numbers.view(np.uint8).data.toreadonly()

    def decode(self, payload: Buffer, elements: int) -> Tensor:
        """A copy, so that a received payload can be hashed and passed on whatever becomes of the tensor."""
        source = np.frombuffer(checked_payload(payload, elements, 4 * elements, self.name), np.uint8)
        numbers = np.empty(elements, np.float32)
        target = numbers.view(np.uint8)
        for start in range(0, elements, PIECE_ELEMENTS):
            stop = min(start + PIECE_ELEMENTS, elements)
            target[4 * start : 4 * stop] = source[4 * start : 4 * stop]
            if not all_finite_32(numbers[start:stop]):
                raise CodecError(f"{self.name}: the payload has a NaN or Inf in {start}..{stop - 1}")
        return torch.from_numpy(numbers)


@dataclass(frozen=True, slots=True)
class Bf16:
    """2 bytes per number; relative error at most 2**-8, absolute 2**-134 below 2**-126."""

    error_feedback: bool = False
    name: str = "bf16"
    topology: Literal["reduce_scatter"] = "reduce_scatter"
    block_elements: int = 1

    def max_payload_bytes(self, elements: int) -> int:
        return 2 * elements

    def encode(self, values: Tensor) -> memoryview:
        values = checked_values(values)
        bits = np.empty(values.numel(), np.uint16)
        rounded = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
        for start in range(0, bits.size, PIECE_ELEMENTS):
            stop = start + PIECE_ELEMENTS
            rounded[start:stop].copy_(values[start:stop])
            if not all_finite_16(bits[start:stop]):
                if not all_finite_32(values[start:stop].numpy()):
                    raise refuse_non_finite(values, start, self.name)
                rounded[start:stop].copy_(values[start:stop].clamp(-BF16_MAX, BF16_MAX))
        return bits.view(np.uint8).data

    def decode(self, payload: Buffer, elements: int) -> Tensor:
        source = np.frombuffer(checked_payload(payload, elements, 2 * elements, self.name), np.uint8)
        values = torch.empty(elements)
        bits = np.empty(min(PIECE_ELEMENTS, elements), np.uint16)
        for start in range(0, elements, PIECE_ELEMENTS):
            stop = min(start + PIECE_ELEMENTS, elements)
            # through a small aligned buffer: payloads may lie anywhere, and may be read-only
            piece = bits[: stop - start]
            piece.view(np.uint8)[:] = source[2 * start : 2 * stop]
            if not all_finite_16(piece):
                raise CodecError(f"{self.name}: the payload has a NaN or Inf in {start}..{stop - 1}")
            values[start:stop].copy_(torch.from_numpy(piece.view(np.int16)).view(torch.bfloat16))
        return values


def bf16_reference(value: float) -> int:
    """The 16 bits of one finite fp32 number, by the rule: what `Bf16.encode` does, one at a time."""
    bits = int(np.float32(value).view(np.uint32))
    upper, lower = bits >> 16, bits & 0xFFFF
    if lower > 0x8000 or (lower == 0x8000 and upper & 1):
        upper += 1  # a carry into the exponent is the next power of two, as it should be
    return upper - 1 if upper & 0x7FFF == 0x7F80 else upper
