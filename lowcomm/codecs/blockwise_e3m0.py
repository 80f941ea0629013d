"""E3M0, a 4-bit float of sign and exponent: 4.25 bits per parameter.

For every block of 128 numbers (the last may be shorter), with scale = max|x|:

    decoded x' = 0 or +-scale * 2**(c - 7),  c = 1..7,  whichever is nearest to x; ties go up

Header: the scale as fp32; code: c (0 for zero) and the sign in bit 3, two in a byte. Numbers below
scale / 128 become zero; |x - x'| <= max(|x| / 3, scale / 128). The format in which Streaming DiLoCo
sends pseudo-gradients, without error feedback (Douillard et al. 2025, arXiv:2501.18512, 3.4), here with
a scale per block. Finer than int4 near zero, coarser near the maximum.

Scales are 0 or at least 2**-119 (1.5e-36), so that no level is denormal and decoding, a multiplication by
a power of two, is exact on every machine; a block with a smaller maximum becomes zero.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lowcomm.codecs.base import Codec
from lowcomm.codecs.blockwise import Blockwise, Codes, Floats, Format, Headers, refused_scales
from lowcomm.codecs.kernels import (
    BOOL,
    BYTES,
    FLOAT32,
    FLOATS32,
    INT64,
    READ_BYTES,
    READ_FLOAT32,
    READ_UINT32,
    UINT32,
    VOID,
    kernel,
)
from lowcomm.codecs.options import feedback
from lowcomm.methods import Spec

BLOCK, ROW = 128, 64
SIGN = 8
MIN_SCALE = np.float32(2.0**-119)
# |x| / scale from which on the code is 1, 2 ... 7: the middle between two levels
BOUNDS = tuple(np.float32(bound) for bound in (1 / 128, *(0.75 * 2.0**-place for place in range(5, -1, -1))))
_B1, _B7 = BOUNDS[0], BOUNDS[-1]
_ABSOLUTE, _INFINITE = np.uint32(0x7FFF_FFFF), np.uint32(0x7F80_0000)


@kernel(INT64, READ_FLOAT32, UINT32, BYTES, FLOATS32)
def _encode(values: Floats, headers: Headers, codes: Codes, lost: Floats) -> int:
    keep = lost.size > 0
    numbers, fields = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.int32)
    words = numbers.view(np.uint32)
    for block in range(headers.size):
        start = block * BLOCK
        width = min(BLOCK, values.size - start)
        if width == BLOCK:
            for j in range(BLOCK):
                numbers[j] = values[start + j]
        else:
            numbers[:] = 0
            for j in range(width):
                numbers[j] = values[start + j]
        top = np.uint32(0)
        for j in range(BLOCK):
            top = max(top, np.uint32(words[j] & _ABSOLUTE))  # as integers: NaN is above Inf
        if top >= _INFINITE:
            return block
        scale = np.uint32(top).view(np.float32)
        if scale < MIN_SCALE:
            scale = np.float32(0)
        headers[block] = np.float32(scale).view(np.uint32)
        if scale == 0:
            for j in range(BLOCK):
                fields[j] = 0
        else:
            # all bounds but the first are the last one over a power of two, so how far below it the number's
            # bits are says by how many; as integers, which any CPU compares by the vector
            first = np.int32(np.float32(scale * _B1).view(np.int32))
            last = np.int32(np.float32(scale * _B7).view(np.int32))
            for j in range(BLOCK):
                size = np.int32(words[j] & _ABSOLUTE)
                code = np.int32(np.int32(np.int32(size - last) >> 23) + 7)
                code = max(code, np.int32(size >= first))
                negative = np.int32(numbers[j] < 0) & np.int32(code > 0)
                fields[j] = code | (negative << 3)
        at = block * ROW
        for j in range(min(width, ROW)):
            codes[at + j] = np.uint8(fields[j] | (fields[j + ROW] << 4))
        if keep:
            for j in range(width):
                code = fields[j] & 7
                power = np.uint32((code + 120) << 23).view(np.float32) if code else np.float32(0)
                level = -power if fields[j] & SIGN else power
                lost[start + j] = numbers[j] - level * scale
    return -1


@kernel(VOID, READ_UINT32, READ_BYTES, FLOATS32, BOOL, FLOAT32)
def _decode(headers: Headers, codes: Codes, out: Floats, add: bool, weight: np.float32) -> None:
    numbers, fields = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.int32)
    for block in range(headers.size):
        start, at = block * BLOCK, block * ROW
        width = min(BLOCK, out.size - start)
        scale = np.uint32(headers[block]).view(np.float32)
        for j in range(min(width, ROW)):
            pair = np.int32(codes[at + j])
            fields[j] = pair & 15
            fields[j + ROW] = pair >> 4
        for j in range(BLOCK):
            code = fields[j] & 7
            power = np.uint32((code + 120) << 23).view(np.float32) if code else np.float32(0)
            numbers[j] = (-power if fields[j] & SIGN else power) * scale
        if add:
            for j in range(width):
                out[start + j] += weight * numbers[j]
        else:
            for j in range(width):
                out[start + j] = numbers[j]


def _encode_eager(blocks: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    sizes = blocks.abs()
    scales = sizes.amax(1)
    scales = scales.masked_fill(scales < float(MIN_SCALE), 0)
    codes = torch.zeros_like(blocks, dtype=torch.uint8)
    for bound in BOUNDS:
        codes += sizes >= scales[:, None] * float(bound)
    codes.masked_fill_(scales[:, None] == 0, 0)
    return scales, torch.where((blocks < 0) & (codes > 0), codes | SIGN, codes)


def _decode_eager(headers: Tensor, codes: Tensor) -> Tensor:
    places = (codes & 7).to(torch.int32)
    powers = ((places + 120) << 23).view(torch.float32).masked_fill(places == 0, 0)
    levels = torch.where(codes & SIGN > 0, -powers, powers)
    return levels * headers.view(torch.float32)[:, None]


FORMAT = Format(
    name="e3m0",
    tag=0xE1,
    block_elements=BLOCK,
    codes_per_byte=2,
    encode=_encode,
    decode=_decode,
    encode_eager=_encode_eager,
    decode_eager=_decode_eager,
    refused=refused_scales(0x0400_0000, 0x7F7F_FFFF),
    rule=f"scales of 0 or at least {MIN_SCALE:.3g}",
)


def e3m0(error_feedback: bool = False, decay: float = 1.0) -> Codec:
    """Signed powers of two in 4 bits, relative to the largest of every 128 numbers."""
    return Blockwise(FORMAT, *feedback(error_feedback, decay))


SPEC = Spec(name="e3m0", make=e3m0, about="4.25 bits per parameter, blockwise powers of two")
