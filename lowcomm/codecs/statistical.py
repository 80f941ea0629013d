"""2-bit statistical quantisation: 2.125 bits per parameter.

For every block of 256 numbers (the last may be shorter) a threshold t splits the magnitudes into
small and large ones; what is sent of a number is its sign and its side:

    decoded x' = sign(x) * (mean of |x| over its side)

t starts at 1.23 * mean|x|, the best place for Gaussian numbers (Max 1960), and is moved once to the
middle of the two means (a step of Lloyd's algorithm), so that it suits the block's own statistics.
Means as levels are the best for given sides and keep the sum of magnitudes. "Statistical" as opposed to
evenly spaced levels: MuLoCo (Therien et al. 2025, arXiv:2505.23725), where it needs error feedback.

Header: the two means rounded to bfloat16, the smaller in the lower half; code: bit 0 = large, bit 1 =
negative, four in a byte. Sums are made by halving (x[:n/2] + x[n/2:] until one is left) of |x| / 256, so
that they don't overflow, are exact to a few ulp and round alike in any implementation. Means below
2**-126 become 0, those too large for bfloat16 its largest number, and decoding is a choice among four
numbers: the same on every machine.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowcomm.codecs.base import Codec
from lowcomm.codecs.blockwise import Blockwise, Codes, Floats, Format, Headers
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
from lowcomm.codecs.options import feedback, warn_without
from lowcomm.methods import Spec

BLOCK, HALF, ROW = 256, 128, 64
FIRST_THRESHOLD = np.float32(1.23)  # times mean|x|; 0.9816 sigma for Gaussian numbers
PASSES = 2
LARGE, NEGATIVE = 1, 2
_ABSOLUTE, _INFINITE = np.uint32(0x7FFF_FFFF), np.uint32(0x7F80_0000)
_DOWN, _UP = np.float32(1 / 256), np.float32(256)  # a sum of 256 scaled numbers can't overflow
_MOST_MEAN = np.float32(np.finfo(np.float32).max / 256)
_ZERO, _ONE = np.float32(0), np.float32(1)
_LEAST, _MOST = 0x0080, 0x7F7F  # the bits of the smallest and the largest normal bfloat16


@kernel(INT64, READ_FLOAT32, UINT32, BYTES, FLOATS32)
def _encode(values: Floats, headers: Headers, codes: Codes, lost: Floats) -> int:
    keep = lost.size > 0
    numbers, fields = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.int32)
    sizes, means, bits = np.empty(BLOCK, np.float32), np.empty(2, np.float32), np.empty(2, np.uint32)
    small_sums, large_sums = np.empty(HALF, np.float32), np.empty(HALF, np.float32)
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
        for j in range(BLOCK):
            sizes[j] = abs(numbers[j]) * _DOWN
        for j in range(HALF):
            small_sums[j] = sizes[j] + sizes[j + HALF]
        half = HALF // 2
        while half:
            for j in range(half):
                small_sums[j] += small_sums[j + half]
            half //= 2
        threshold = FIRST_THRESHOLD * (small_sums[0] / np.float32(width))
        used = threshold
        for _ in range(PASSES):
            used = threshold
            large = np.int32(0)
            for j in range(BLOCK):
                large = np.int32(large + np.int32(sizes[j] > used))  # numba adds in 64 bits else
            for j in range(HALF):
                one, two = sizes[j], sizes[j + HALF]
                big_one, big_two = one if one > used else _ZERO, two if two > used else _ZERO
                large_sums[j] = big_one + big_two
                small_sums[j] = (one - big_one) + (two - big_two)
            half = HALF // 2
            while half:
                for j in range(half):
                    small_sums[j] += small_sums[j + half]
                    large_sums[j] += large_sums[j + half]
                half //= 2
            means[0] = small_sums[0] / max(np.float32(width - large), _ONE)
            means[1] = large_sums[0] / max(np.float32(large), _ONE)
            threshold = (means[0] + means[1]) * np.float32(0.5)
        for side in range(2):
            word = np.float32(min(means[side], _MOST_MEAN) * _UP).view(np.uint32)
            word = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            bits[side] = np.uint32(0) if word < _LEAST else min(word, np.uint32(_MOST))
        headers[block] = bits[0] | (bits[1] << np.uint32(16))
        for j in range(BLOCK):
            fields[j] = np.int32(sizes[j] > used) | (np.int32(numbers[j] < 0) << 1)
        at = block * ROW
        for j in range(min(width, ROW)):
            low = fields[j] | (fields[j + ROW] << 2)
            codes[at + j] = np.uint8(low | (fields[j + 2 * ROW] << 4) | (fields[j + 3 * ROW] << 6))
        if keep:
            small = np.uint32(bits[0] << np.uint32(16)).view(np.float32)
            big = np.uint32(bits[1] << np.uint32(16)).view(np.float32)
            for j in range(width):
                level = big if fields[j] & LARGE else small
                lost[start + j] = numbers[j] - (-level if fields[j] & NEGATIVE else level)
    return -1


@kernel(VOID, READ_UINT32, READ_BYTES, FLOATS32, BOOL, FLOAT32)
def _decode(headers: Headers, codes: Codes, out: Floats, add: bool, weight: np.float32) -> None:
    numbers, fields = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.int32)
    for block in range(headers.size):
        start, at = block * BLOCK, block * ROW
        width = min(BLOCK, out.size - start)
        small = np.uint32(headers[block] << np.uint32(16)).view(np.float32)
        big = np.uint32(headers[block] & np.uint32(0xFFFF_0000)).view(np.float32)
        for j in range(min(width, ROW)):
            four = np.int32(codes[at + j])
            fields[j] = four
            fields[j + ROW] = four >> 2
            fields[j + 2 * ROW] = four >> 4
            fields[j + 3 * ROW] = four >> 6
        for j in range(BLOCK):
            level = big if fields[j] & LARGE else small
            numbers[j] = -level if fields[j] & NEGATIVE else level
        if add:
            for j in range(width):
                out[start + j] += weight * numbers[j]
        else:
            for j in range(width):
                out[start + j] = numbers[j]


def _sums(sizes: Tensor) -> Tensor:
    """Of each row (n, BLOCK), by halving: the order that the kernel has."""
    while sizes.shape[1] > 1:
        low, high = sizes.chunk(2, 1)
        sizes = low + high
    return sizes


def _encode_eager(blocks: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    sizes = blocks.abs() * float(_DOWN)
    threshold = _sums(sizes) / counts.float() * float(FIRST_THRESHOLD)
    small_mean = large_mean = large = threshold
    for _ in range(PASSES):
        large = sizes > threshold
        count = large.sum(1, keepdim=True)
        small_mean = _sums(sizes.where(~large, 0)) / (counts - count).clamp(min=1).float()
        large_mean = _sums(sizes.where(large, 0)) / count.clamp(min=1).float()
        threshold = (small_mean + large_mean) * 0.5
    means = torch.cat([small_mean, large_mean], 1).clamp(max=float(_MOST_MEAN)) * float(_UP)
    words = means.view(torch.int32)
    words = (words + 0x7FFF + ((words >> 16) & 1)) >> 16
    words = words.masked_fill(words < _LEAST, 0).clamp(max=_MOST)
    return words[:, 0] | (words[:, 1] << 16), large.to(torch.uint8) | ((blocks < 0).to(torch.uint8) << 1)


def _decode_eager(headers: Tensor, codes: Tensor) -> Tensor:
    small, big = (headers << 16).view(torch.float32), (headers & -0x1_0000).view(torch.float32)
    levels = torch.where(codes & LARGE > 0, big[:, None], small[:, None])
    return torch.where(codes & NEGATIVE > 0, -levels, levels)


def _refused(headers: Headers) -> NDArray[np.bool_]:
    halves = np.ascontiguousarray(headers).view(np.uint16)
    bad = (halves != 0) & ((halves < _LEAST) | (halves > _MOST))
    either: NDArray[np.bool_] = bad.reshape(-1, 2).any(1)
    return either


FORMAT = Format(
    name="2bit",
    tag=0x21,
    block_elements=BLOCK,
    codes_per_byte=4,
    encode=_encode,
    decode=_decode,
    encode_eager=_encode_eager,
    decode_eager=_decode_eager,
    refused=_refused,
    rule="two bfloat16 that are 0 or positive, normal and finite",
)


def two_bit(error_feedback: bool = True, decay: float = 1.0) -> Codec:
    """Sign and size in 2 bits, the sizes from the statistics of every 256 numbers."""
    warn_without(error_feedback, "2bit")
    return Blockwise(FORMAT, *feedback(error_feedback, decay))


SPEC = Spec(name="2bit", make=two_bit, about="2.125 bits per parameter, levels from statistics of blocks")
