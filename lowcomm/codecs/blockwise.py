"""Blockwise symmetric int8: 8.125 bits per parameter.

For every block of 256 numbers (the last may be shorter):

    scale = max|x| / 127,   q = round(x / scale) in -127..127,   decoded x' = q * scale

Payload: all scales as fp32, then all q as int8. |x - x'| <= scale / 2. Blockwise scaling as in
8-bit optimizers (Dettmers et al. 2022, arXiv:2110.02861), linear instead of dynamic.

Decoding is one fp32 multiplication. To give the same bits everywhere it must meet neither an
overflow nor a denormal (which some machines flush to zero, and torch may be told to), so scales are
0 or between 2**-126 and max_fp32 / 128. A block whose scale would be smaller, with every |x| < 1.5e-36,
becomes zero; a block with |x| > 3.37e38 has its largest numbers cut there, an error of at most one scale.
Anything else in a payload is refused.
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
    checked_out,
    checked_payload,
    checked_values,
    refuse_non_finite,
)
from lowcomm.codecs.dense import add_weighted_
from lowcomm.errors import CodecError

BLOCK_ELEMENTS = 256
LEVELS = 127  # -128 is never sent: the levels are symmetric
SCALE_BYTES = 4
MIN_SCALE = float(np.finfo(np.float32).tiny)  # 2**-126, the smallest normal number
MAX_SCALE = float(np.finfo(np.float32).max) / 128  # so that even q = -128 decodes to a finite number
_MIN_SCALE_BITS, _MAX_SCALE_BITS = 0x0080_0000, 0x7BFF_FFFF  # positive fp32 are ordered as their bits


@dataclass(frozen=True, slots=True)
class Int8:
    """Signed 8-bit integers with one fp32 scale per block of 256."""

    error_feedback: bool = False
    decay: float = 1.0
    name: str = "int8"
    topology: Literal["reduce_scatter"] = "reduce_scatter"
    block_elements: int = BLOCK_ELEMENTS

    def max_payload_bytes(self, elements: int) -> int:
        return _blocks(elements) * SCALE_BYTES + elements

    def encode(self, values: Tensor, lost: Tensor | None = None) -> memoryview:
        values = checked_values(values)
        if lost is not None:
            checked_out(lost, values.numel(), "lost")
        elements = values.numel()
        blocks = _blocks(elements)
        payload = np.empty(self.max_payload_bytes(elements), np.uint8)
        scales = torch.from_numpy(payload[: blocks * SCALE_BYTES].view(np.float32))
        quantised = torch.from_numpy(payload[blocks * SCALE_BYTES :].view(np.int8))
        pieces = _pieces(elements)
        scratch = torch.empty(min(elements, PIECE_ELEMENTS))
        for start, stop, width in pieces:
            absolute = scratch[: stop - start]
            torch.abs(values[start:stop], out=absolute)
            maxima = scales[start // BLOCK_ELEMENTS : _blocks(stop)]
            torch.amax(absolute.view(-1, width), 1, out=maxima)
        broken = torch.isfinite(scales).logical_not().nonzero()  # a maximum keeps NaN and Inf
        if len(broken):
            raise refuse_non_finite(values, int(broken[0]) * BLOCK_ELEMENTS, self.name)
        scales.div_(LEVELS).clamp_(max=MAX_SCALE)
        scales.masked_fill_(scales < MIN_SCALE, 0.0)
        factors = scales.reciprocal().masked_fill_(scales == 0.0, 0.0)[:, None]
        for start, stop, width in pieces:
            levels = scratch[: stop - start].view(-1, width)
            rows = factors[start // BLOCK_ELEMENTS : _blocks(stop)]
            torch.mul(values[start:stop].view(-1, width), rows, out=levels)
            levels.round_().clamp_(-LEVELS, LEVELS)
            quantised[start:stop].view(-1, width).copy_(levels)
        if lost is not None:
            torch.sub(values, self.decode(payload.data, elements), out=lost.detach())
        return payload.data

    def decode_add(self, payload: Buffer, weight: float, total: Tensor) -> None:
        elements = checked_out(total, total.numel(), "total").numel()
        add_weighted_(total, self.decode(payload, elements), weight)

    def decode(self, payload: Buffer, elements: int, out: Tensor | None = None) -> Tensor:
        view = checked_payload(payload, elements, self.max_payload_bytes(max(elements, 0)), self.name)
        scale_bytes = _blocks(elements) * SCALE_BYTES
        scales = np.frombuffer(view[:scale_bytes], np.dtype("<f4")).copy()  # a payload may be unaligned
        bits = scales.view(np.int32)
        refused = (bits != 0) & ((bits < _MIN_SCALE_BITS) | (bits > _MAX_SCALE_BITS))
        if refused.any():
            block = int(refused.argmax())
            raise CodecError(
                f"{self.name}: expected scales of 0 or {MIN_SCALE:.3g}..{MAX_SCALE:.3g}, "
                f"got {scales[block]} for block {block}"
            )
        quantised = np.frombuffer(view[scale_bytes:], np.int8)
        values = torch.empty(elements) if out is None else checked_out(out, elements, "out")
        numbers, factors = values.numpy(), torch.from_numpy(scales)[:, None]
        for start, stop, width in _pieces(elements):
            numbers[start:stop] = quantised[start:stop]
            piece = values[start:stop].view(-1, width)
            piece.mul_(factors[start // BLOCK_ELEMENTS : _blocks(stop)])
        return values


def _blocks(elements: int) -> int:
    return -(-elements // BLOCK_ELEMENTS)


def _pieces(elements: int) -> list[tuple[int, int, int]]:
    """(start, stop, numbers in a block) of what is worked on at a time; a short last block by itself."""
    whole = elements // BLOCK_ELEMENTS * BLOCK_ELEMENTS
    pieces = [
        (start, min(start + PIECE_ELEMENTS, whole), BLOCK_ELEMENTS)
        for start in range(0, whole, PIECE_ELEMENTS)
    ]
    return pieces if whole == elements else [*pieces, (whole, elements, elements - whole)]


def encode_reference(values: Tensor) -> bytes:
    """What `Int8.encode` does, one number at a time."""
    scales, quantised = [], []
    one, least, most = np.float32(1), np.float32(MIN_SCALE), np.float32(MAX_SCALE)
    numbers = values.numpy()
    for start in range(0, numbers.size, BLOCK_ELEMENTS):
        block = numbers[start : start + BLOCK_ELEMENTS]
        scale = np.float32(np.abs(block).max() / np.float32(LEVELS))
        scale = min(scale, most) if scale >= least else np.float32(0)
        scales.append(scale)
        for number in block:
            level = int(np.rint(number * (one / scale))) if scale else 0
            quantised.append(min(max(level, -LEVELS), LEVELS))
    return np.array(scales, "<f4").tobytes() + np.array(quantised, np.int8).tobytes()


def decode_reference(payload: bytes, elements: int) -> list[float]:
    """What `Int8.decode` does with a valid payload, one number at a time."""
    scales = np.frombuffer(payload, "<f4", _blocks(elements))
    quantised = np.frombuffer(payload, np.int8, elements, offset=4 * len(scales))
    return [float(np.float32(q) * scales[i // BLOCK_ELEMENTS]) for i, q in enumerate(quantised)]
