"""Codecs without blocks: fp32 as it is, and bfloat16.

fp32 payload: the numbers. bf16 payload: the upper 16 bits of each number, rounded to nearest, ties
to even (IEEE 754, 4.3.1); finite numbers too large for bfloat16 become its largest, so that no Inf
comes out of finite input. Decoding is exact, so it is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    checked_out,
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
    decay: float = 1.0

    def max_payload_bytes(self, elements: int) -> int:
        return 4 * elements

    def encode(self, values: Tensor, lost: Tensor | None = None) -> memoryview:
        """Without `lost`, a read-only view of host `values`: leave them unchanged while it is in use."""
        values = checked_values(values)
        host = values.cpu()
        numbers = host.numpy()
        for start in range(0, numbers.size, PIECE_ELEMENTS):
            if not all_finite_32(numbers[start : start + PIECE_ELEMENTS]):
                raise refuse_non_finite(host, start, self.name)
        if lost is not None:
            numbers = numbers.copy()  # `lost` may be `values`
            checked_out(lost, values.numel(), "lost").zero_()
        return numbers.view(np.uint8).data.toreadonly()

    def decode(self, payload: Buffer, elements: int, out: Tensor | None = None) -> Tensor:
        """A copy, so that a received payload can be hashed and passed on whatever becomes of the tensor."""
        view = checked_payload(payload, elements, 4 * elements, self.name)
        out = (
            torch.empty(elements, dtype=torch.float32, device="cpu")
            if out is None
            else checked_out(out, elements, "out")
        )
        if out.device.type != "cpu":
            for start, stop, piece in _pieces_32(view, elements, self.name):
                out[start:stop] = piece
            return out
        numbers, source = out.numpy(), np.frombuffer(view, np.uint8)
        target = numbers.view(np.uint8)
        for start in range(0, elements, PIECE_ELEMENTS):
            stop = min(start + PIECE_ELEMENTS, elements)
            target[4 * start : 4 * stop] = source[4 * start : 4 * stop]
            if not all_finite_32(numbers[start:stop]):
                raise _not_finite(self.name, start, stop)
        return out

    def decode_add(self, payload: Buffer, weight: float, total: Tensor) -> None:
        elements = checked_out(total, total.numel(), "total").numel()
        view = checked_payload(payload, elements, 4 * elements, self.name)
        for _ in _pieces_32(view, elements, self.name):
            pass  # refused before the first addition, if at all
        for start, stop, piece in _pieces_32(view, elements, self.name):
            add_weighted_(total[start:stop], piece, weight)


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


def add_weighted_(total: Tensor, part: Tensor, weight: float) -> None:
    """total += weight * part in fp32, rounded after each; overwrites `part`.

    The weight is rounded to fp32 first: torch would multiply by the double and round once.
    """
    total.detach().add_(part.to(total.device).mul_(float(np.float32(weight))))


def _pieces_32(view: memoryview, elements: int, name: str) -> Iterator[tuple[int, int, Tensor]]:
    """(start, stop, numbers) piece by piece; the next piece overwrites the last.

    Through a small buffer: payloads may lie anywhere, may be read-only, and are somebody's.
    """
    source = np.frombuffer(view, np.uint8)
    numbers = np.empty(min(PIECE_ELEMENTS, elements), np.float32)
    for start in range(0, elements, PIECE_ELEMENTS):
        stop = min(start + PIECE_ELEMENTS, elements)
        piece = numbers[: stop - start]
        piece.view(np.uint8)[:] = source[4 * start : 4 * stop]
        if not all_finite_32(piece):
            raise _not_finite(name, start, stop)
        yield start, stop, torch.from_numpy(piece)


def _pieces_16(view: memoryview, elements: int, name: str) -> Iterator[tuple[int, int, Tensor]]:
    """As `_pieces_32`, as bfloat16."""
    source = np.frombuffer(view, np.uint8)
    bits = np.empty(min(PIECE_ELEMENTS, elements), np.uint16)
    for start in range(0, elements, PIECE_ELEMENTS):
        stop = min(start + PIECE_ELEMENTS, elements)
        piece = bits[: stop - start]
        piece.view(np.uint8)[:] = source[2 * start : 2 * stop]
        if not all_finite_16(piece):
            raise _not_finite(name, start, stop)
        yield start, stop, torch.from_numpy(piece.view(np.int16)).view(torch.bfloat16)


def _not_finite(name: str, start: int, stop: int) -> CodecError:
    return CodecError(f"{name}: the payload has a NaN or Inf in {start}..{stop - 1}")


def bf16_reference(value: float) -> int:
    """The 16 bits of one finite fp32 number, by the rule: what `Bf16.encode` does, one at a time."""
    bits = int(np.float32(value).view(np.uint32))
    upper, lower = bits >> 16, bits & 0xFFFF
    if lower > 0x8000 or (lower == 0x8000 and upper & 1):
        upper += 1  # a carry into the exponent is the next power of two, as it should be
    return upper - 1 if upper & 0x7FFF == 0x7F80 else upper
