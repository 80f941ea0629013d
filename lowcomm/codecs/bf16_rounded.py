"""bfloat16: 16 bits per parameter.

The payload is the upper 16 bits of each number, rounded to nearest, ties to even (IEEE 754, 4.3.1); finite
numbers too large for bfloat16 become its largest, so that no Inf comes out of finite input. Decoding is
exact, so it is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lowcomm.codecs.base import Codec
from lowcomm.codecs.buffers import (
    PIECE_ELEMENTS,
    Buffer,
    all_finite_16,
    all_finite_32,
    checked_out,
    checked_payload,
    checked_values,
    refuse_non_finite,
)
from lowcomm.codecs.dense import add_weighted_, not_finite
from lowcomm.codecs.options import feedback
from lowcomm.methods import Spec

BF16_MAX = 3.3895313892515355e38  # (2 - 2**-7) * 2**127


@dataclass(frozen=True, slots=True)
class Bf16:
    """2 bytes per number; relative error at most 2**-8, absolute 2**-134 below 2**-126."""

    error_feedback: bool = False
    decay: float = 1.0
    name: str = "bf16"
    topology: Literal["reduce_scatter"] = "reduce_scatter"
    block_elements: int = 1

    def max_payload_bytes(self, elements: int) -> int:
        return 2 * elements

    def encode(self, values: Tensor, lost: Tensor | None = None) -> memoryview:
        values = checked_values(values)
        if lost is not None:
            checked_out(lost, values.numel(), "lost")
        bits = np.empty(values.numel(), np.uint16)
        rounded = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
        for start in range(0, bits.size, PIECE_ELEMENTS):
            stop = start + PIECE_ELEMENTS
            rounded[start:stop].copy_(values[start:stop])
            if not all_finite_16(bits[start:stop]):
                if not all_finite_32(values[start:stop].cpu().numpy()):
                    raise refuse_non_finite(values, start, self.name)
                rounded[start:stop].copy_(values[start:stop].clamp(-BF16_MAX, BF16_MAX))
            if lost is not None:
                decoded = rounded[start:stop].to(values.device, torch.float32)
                torch.sub(values[start:stop], decoded, out=lost.detach()[start:stop])
        return bits.view(np.uint8).data

    def decode(self, payload: Buffer, elements: int, out: Tensor | None = None) -> Tensor:
        view = checked_payload(payload, elements, 2 * elements, self.name)
        out = (
            torch.empty(elements, dtype=torch.float32, device="cpu")
            if out is None
            else checked_out(out, elements, "out")
        )
        for start, stop, piece in _pieces_16(view, elements, self.name):
            out[start:stop] = piece
        return out

    def decode_add(self, payload: Buffer, weight: float, total: Tensor) -> None:
        elements = checked_out(total, total.numel(), "total").numel()
        view = checked_payload(payload, elements, 2 * elements, self.name)
        for _ in _pieces_16(view, elements, self.name):
            pass  # refused before the first addition, if at all
        for start, stop, piece in _pieces_16(view, elements, self.name):
            add_weighted_(total[start:stop], piece.float(), weight)


def _pieces_16(view: memoryview, elements: int, name: str) -> Iterator[tuple[int, int, Tensor]]:
    """As `_pieces_32`, as bfloat16."""
    source = np.frombuffer(view, np.uint8)
    bits = np.empty(min(PIECE_ELEMENTS, elements), np.uint16)
    for start in range(0, elements, PIECE_ELEMENTS):
        stop = min(start + PIECE_ELEMENTS, elements)
        piece = bits[: stop - start]
        piece.view(np.uint8)[:] = source[2 * start : 2 * stop]
        if not all_finite_16(piece):
            raise not_finite(name, start, stop)
        yield start, stop, torch.from_numpy(piece.view(np.int16)).view(torch.bfloat16)


def bf16_reference(value: float) -> int:
    """The 16 bits of one finite fp32 number, by the rule: what `Bf16.encode` does, one at a time."""
    bits = int(np.float32(value).view(np.uint32))
    upper, lower = bits >> 16, bits & 0xFFFF
    if lower > 0x8000 or (lower == 0x8000 and upper & 1):
        upper += 1  # a carry into the exponent is the next power of two, as it should be
    return upper - 1 if upper & 0x7FFF == 0x7F80 else upper


def bf16(error_feedback: bool = False, decay: float = 1.0) -> Codec:
    """Rounded to the nearest bfloat16, ties to even."""
    return Bf16(*feedback(error_feedback, decay))


SPEC = Spec(name="bf16", make=bf16, about="16 bits per parameter, rounded to the nearest bfloat16")
