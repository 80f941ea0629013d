"""Blockwise symmetric int8: 8.125 bits per parameter.

For every block of 256 numbers (the last may be shorter):

    scale = max|x| / 127,   q = round(x / scale) in -127..127,   decoded x' = q * scale

Header: the scale as fp32; code: q as a signed byte. |x - x'| <= scale / 2. Blockwise scaling as in
8-bit optimizers (Dettmers et al. 2022, arXiv:2110.02861), linear instead of dynamic.

Scales are 0 or between 2**-126 and max_fp32 / 128, so that decoding, one fp32 multiplication, gives the
same bits everywhere. A block whose scale would be smaller, with every |x| < 1.5e-36, becomes zero; a
block with |x| > 3.37e38 has its largest numbers cut there, an error of at most one scale.
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

BLOCK = 256
LEVELS = np.float32(127)  # -128 is never sent: the levels are symmetric
MIN_SCALE = np.float32(2.0**-126)  # the smallest normal number
MAX_SCALE = np.float32(np.finfo(np.float32).max / 128)  # so that even q = -128 decodes to a finite number
_ABSOLUTE, _INFINITE = np.uint32(0x7FFF_FFFF), np.uint32(0x7F80_0000)


@kernel(INT64, READ_FLOAT32, UINT32, BYTES, FLOATS32)
def _encode(values: Floats, headers: Headers, codes: Codes, lost: Floats) -> int:
    keep = lost.size > 0
    numbers, levels = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
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
        scale = np.uint32(top).view(np.float32) / LEVELS
        if scale < MIN_SCALE:
            scale = np.float32(0)
        scale = min(scale, MAX_SCALE)
        factor = np.float32(1) / scale if scale > 0 else np.float32(0)
        headers[block] = np.float32(scale).view(np.uint32)
        for j in range(width):
            level = min(max(np.rint(numbers[j] * factor), -LEVELS), LEVELS)
            levels[j] = level
            codes[start + j] = np.uint8(np.int32(level))
        if keep:
            for j in range(width):
                lost[start + j] = numbers[j] - levels[j] * scale
    return -1


@kernel(VOID, READ_UINT32, READ_BYTES, FLOATS32, BOOL, FLOAT32)
def _decode(headers: Headers, codes: Codes, out: Floats, add: bool, weight: np.float32) -> None:
    for block in range(headers.size):
        start = block * BLOCK
        width = min(BLOCK, out.size - start)
        scale = np.uint32(headers[block]).view(np.float32)
        if add:
            for j in range(width):
                out[start + j] += weight * (np.float32(np.int8(codes[start + j])) * scale)
        else:
            for j in range(width):
                out[start + j] = np.float32(np.int8(codes[start + j])) * scale


def _encode_eager(blocks: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    scales = blocks.abs().amax(1) / float(LEVELS)
    scales = scales.masked_fill(scales < float(MIN_SCALE), 0).clamp(max=float(MAX_SCALE))
    factors = scales.reciprocal().masked_fill(scales == 0, 0)
    levels = (blocks * factors[:, None]).round().clamp(-float(LEVELS), float(LEVELS))
    return scales, levels.to(torch.int8).view(torch.uint8)


def _decode_eager(headers: Tensor, codes: Tensor) -> Tensor:
    return codes.view(torch.int8).float() * headers.view(torch.float32)[:, None]


FORMAT = Format(
    name="int8",
    tag=0x81,
    block_elements=BLOCK,
    codes_per_byte=1,
    encode=_encode,
    decode=_decode,
    encode_eager=_encode_eager,
    decode_eager=_decode_eager,
    refused=refused_scales(0x0080_0000, 0x7BFF_FFFF),
    rule=f"scales of 0 or {MIN_SCALE:.3g}..{MAX_SCALE:.3g}",
)


def int8(error_feedback: bool = False, decay: float = 1.0) -> Codec:
    """Signed 8-bit integers with one fp32 scale for every 256 of them."""
    return Blockwise(FORMAT, *feedback(error_feedback, decay))


SPEC = Spec(name="int8", make=int8, about="8.125 bits per parameter, blockwise integers")
