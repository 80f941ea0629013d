"""Top-k with entropy-coded indices, 64 of every 4096 numbers: 0.157 bit per parameter.

SparseLoCo (Sarfi et al. 2025, arXiv:2508.15706): of every chunk of 4096 numbers the 64 of largest |x| are
sent, quantised to 2 bits; all others are 0 and go, with what the quantisation lost, into the residual
(decay 0.95), without which it learns clearly worse. There an index takes 12 bits, here 7.5: see rice.py.

    decoded x' = sign(x) * (mean of |x| over its side),  for the kept ones;  0 for the others

The sides are the kept numbers below and above a threshold: first their mean, then, once, the middle of
the two sides' means (a step of Lloyd's algorithm). Equal magnitudes: the lower index is kept. A last
chunk of m numbers keeps one for every 64, or part of them.

Payload: for each chunk the two means rounded to bfloat16 (the smaller first); for each kept number,
in order, 2 bits (bit 0 = large side, bit 1 = negative), 4 in a byte; the indices; and last one byte for
the format and its version. The signs are incompressible, and the sides nearly so (a third are large:
0.92 bit), so entropy coding isn't worth it for them.

Every peer sums the payloads by itself, so the sum has to be the same on all machines, too: means below
2**-64 become 0. A kept number times any weight above 2**-38 is then a multiple of 2**-125, and so is
every sum of them: no denormal turns up that some machine might flush to zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowcomm.codecs.base import Codec
from lowcomm.codecs.buffers import Buffer, checked_out, checked_values, refuse_non_finite
from lowcomm.codecs.kernels import (
    BOOL,
    BYTES,
    FLOAT32,
    FLOATS32,
    INT32,
    INT64,
    INTS32,
    READ_BYTES,
    READ_FLOAT32,
    READ_UINT16,
    UINT16,
    VOID,
    kernel,
)
from lowcomm.codecs.options import feedback, warn_without
from lowcomm.codecs.rice import (
    BEYOND,
    CHUNK,
    ENDED,
    KEPT,
    RATIO,
    chunks,
    kept,
    least_bytes,
    most_bytes,
    read_indices,
    write_indices,
)
from lowcomm.errors import CodecError
from lowcomm.methods import Spec

DECAY = 0.95
GROUPS = 256
"""Of each chunk: every 256th number is of the same."""
TAG, TAG_BYTES, HEADER_BYTES = 0x11, 1, 4
PASSES = 2
LARGE, NEGATIVE = 1, 2
LEAST, MOST = 0x1F80, 0x7F7F  # the bits of 2**-64 and of the largest bfloat16
_ABSOLUTE, _INFINITE = np.uint32(0x7FFF_FFFF), 0x7F80_0000
_REASONS = {
    ENDED: "they end too early",
    BEYOND: "one is beyond its chunk",
    "surplus": "something is left over",
}

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]
Words = NDArray[np.uint16]
Magnitudes = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TopK:
    """64 of every 4096 numbers; payloads vary in size."""

    error_feedback: bool = True
    decay: float = DECAY
    name: str = "topk"
    topology: Literal["all_gather"] = "all_gather"
    block_elements: int = CHUNK

    def max_payload_bytes(self, elements: int) -> int:
        return _fixed_bytes(elements) + most_bytes(elements)

    def encode(self, values: Tensor, lost: Tensor | None = None) -> memoryview:
        values = checked_values(values)
        elements = values.numel()
        if lost is not None:
            lost = checked_out(lost, elements, "lost")
        payload = np.zeros(self.max_payload_bytes(elements), np.uint8)
        headers, packed, stream = _split(payload[:-TAG_BYTES], elements)
        fields, indices = np.empty(kept(elements), np.uint8), np.empty(kept(elements), np.uint16)
        if values.device.type == "cpu":
            touched = np.empty(0, np.float32) if lost is None else lost.numpy()
            broken = _select(values.numpy(), headers, fields, indices, touched)
        else:
            broken = _select_on_device(values, headers, fields, indices, lost)
        if broken >= 0:
            raise refuse_non_finite(values, broken * CHUNK, self.name)
        packed[:] = pack(fields)
        used = len(headers.view(np.uint8)) + len(packed) + -(-write_indices(indices, stream) // 8)
        payload[used] = TAG
        return payload[: used + TAG_BYTES].data

    def decode(self, payload: Buffer, elements: int, out: Tensor | None = None) -> Tensor:
        parts = self._parts(payload, elements)
        out = (
            torch.zeros(elements, dtype=torch.float32, device="cpu")
            if out is None
            else checked_out(out, elements, "out").zero_()
        )
        _put(parts, out, False, np.float32(1))
        return out

    def decode_add(self, payload: Buffer, weight: float, total: Tensor) -> None:
        total = checked_out(total, total.numel(), "total")
        _put(self._parts(payload, total.numel()), total, True, np.float32(weight))

    def _parts(self, payload: Buffer, elements: int) -> tuple[Words, Codes, Words]:
        """Headers, fields and indices of a payload in which nothing is left to be refused."""
        view = memoryview(payload)
        if elements < 0:
            raise CodecError(f"{self.name}: expected 0 or more elements, got {elements}")
        least, most = _fixed_bytes(elements) + least_bytes(elements), self.max_payload_bytes(elements)
        if not least <= view.nbytes <= most:  # so what is allocated below is a few times the payload
            raise CodecError(
                f"{self.name}: expected {least} to {most} bytes for {elements} elements, got {view.nbytes}"
            )
        data = np.frombuffer(view.cast("B"), np.uint8)
        if data[-1] != TAG:
            raise CodecError(
                f"{self.name}: expected a payload that ends with 0x{TAG:02x}, its format and version, got "
                f"0x{data[-1]:02x}: another codec or version of lowcomm sent it"
            )
        headers, packed, stream = _split(data[:-TAG_BYTES], elements)
        refused = (headers != 0) & ((headers < LEAST) | (headers > MOST))
        if refused.any():
            at = int(refused.argmax())
            raise CodecError(
                f"{self.name}: expected means of 0 or bfloat16 from 2**-64, "
                f"got 0x{headers[at]:04x} for chunk {at // 2}"
            )
        indices = np.empty(kept(elements), np.uint16)
        answer = read_indices(stream, elements, indices)
        if answer:
            reason = _REASONS.get(answer, _REASONS["surplus"])
            raise CodecError(f"{self.name}: expected {kept(elements)} indices, but {reason}")
        return headers, unpack(packed, kept(elements)), indices


def _fixed_bytes(elements: int) -> int:
    return HEADER_BYTES * chunks(elements) + -(-kept(elements) // 4) + TAG_BYTES


def _split(payload: Codes, elements: int) -> tuple[Words, Codes, Codes]:
    """Headers, packed fields, and what is left for the indices."""
    first = HEADER_BYTES * chunks(elements)
    second = first + -(-kept(elements) // 4)
    headers = payload[:first]
    if headers.flags.writeable and headers.ctypes.data % 2 == 0:
        return headers.view(np.uint16), payload[first:second], payload[second:]
    return headers.copy().view(np.uint16), payload[first:second], payload[second:]


def pack(fields: Codes) -> Codes:
    """Four fields of 2 bits in a byte, the first lowest."""
    four = np.zeros((-(-len(fields) // 4), 4), np.uint8)
    four.reshape(-1)[: len(fields)] = fields
    return np.asarray(four[:, 0] | four[:, 1] << 2 | four[:, 2] << 4 | four[:, 3] << 6, np.uint8)


def unpack(packed: Codes, count: int) -> Codes:
    """The inverse of `pack`."""
    fields: Codes = (packed[:, None] >> np.array([0, 2, 4, 6], np.uint8)) & np.uint8(3)
    return fields.reshape(-1)[:count]


@kernel(INT32, INTS32, INT64, INT64)
def _reached(words: Magnitudes, many: int, count: int) -> np.int32:
    """A bound that `count` of the first `many` words reach; no more do, unless they are equal to it."""
    top = np.int32(0)
    for i in range(many):
        top = max(top, words[i])
    bound = np.int32(0)
    for bit in range(30, -1, -1):
        trial = np.int32(bound | (1 << bit))
        if trial <= top:
            reached = np.int32(0)
            for i in range(many):
                reached = np.int32(reached + np.int32(words[i] >= trial))  # numba adds in 64 bits else
            if reached >= count:
                bound = trial
            if reached == count:
                break
    return bound


@kernel(VOID, INTS32, INT64, INTS32, UINT16, INTS32, UINT16)
def _largest(
    words: Magnitudes, count: int, maxima: Magnitudes, groups: Words, found: Magnitudes, places: Words
) -> None:
    """Where the `count` largest of a chunk's words are, in order, at the beginning of `places`."""
    for group in range(GROUPS):
        maxima[group] = words[group]
    for row in range(1, CHUNK // GROUPS):
        for group in range(GROUPS):
            maxima[group] = max(maxima[group], words[row * GROUPS + group])
    # `count` groups reach this, so as many words do, and they are in these groups: a quarter of all
    least = _reached(maxima, GROUPS, count)
    reaching = np.uintp(0)
    for group in range(GROUPS):
        groups[reaching] = group
        reaching += np.uintp(maxima[group] >= least)
    many = np.uintp(0)
    for row in range(CHUNK // GROUPS):
        for i in range(reaching):
            place = np.uintp(row * GROUPS) + np.uintp(groups[i])
            places[many] = np.uint16(place)
            many += np.uintp(words[place] >= least)
    for i in range(many):
        found[i] = words[places[i]]
    bound = _reached(found, int(many), count)
    ties = np.int64(count)
    for i in range(many):
        ties -= found[i] > bound
    at = 0
    for i in range(many):
        if found[i] > bound or (found[i] == bound and ties > 0):
            ties -= found[i] == bound
            places[at] = places[i]
            at += 1


@kernel(INT64, READ_FLOAT32, UINT16, BYTES, UINT16, FLOATS32)
def _select(values: Floats, headers: Words, fields: Codes, indices: Words, lost: Floats) -> int:
    """Fill in headers, fields, indices and, unless it is empty, `lost`. Returns a bad chunk, or -1."""
    words, sizes, means = np.empty(CHUNK, np.int32), np.empty(KEPT, np.float64), np.empty(2)
    maxima, groups = np.empty(GROUPS, np.int32), np.empty(GROUPS, np.uint16)
    found, places = np.empty(CHUNK, np.int32), np.empty(CHUNK, np.uint16)
    numbers = values.view(np.uint32)
    for chunk in range((values.size + CHUNK - 1) // CHUNK):
        start, first = chunk * CHUNK, chunk * KEPT
        width = min(CHUNK, values.size - start)
        count = (width + RATIO - 1) // RATIO
        top = np.int32(0)
        for j in range(width):
            words[j] = np.int32(numbers[start + j] & _ABSOLUTE)  # positive fp32 sort as their bits
            top = max(top, words[j])
        if top >= _INFINITE:
            return chunk
        for j in range(width, CHUNK):
            words[j] = -1
        for j in range(width if lost.size else 0):
            lost[start + j] = values[start + j]
        _largest(words, count, maxima, groups, found, places)
        for i in range(count):
            indices[first + i] = places[i]
            sizes[i] = np.float64(np.int32(words[places[i]]).view(np.float32))
        total = 0.0
        for i in range(count):
            total += sizes[i]
        threshold = total / count
        used = threshold
        for _ in range(PASSES):
            used, small, large, larger = threshold, 0.0, 0.0, 0
            for i in range(count):
                above = sizes[i] > used
                # adding 0 takes less time than a branch that the processor can't foresee
                large += sizes[i] if above else 0.0
                small += 0.0 if above else sizes[i]
                larger += above
            means[0] = small / max(count - larger, 1)
            means[1] = large / max(larger, 1)
            threshold = (means[0] + means[1]) * 0.5
        for side in range(2):
            word = np.float32(means[side]).view(np.uint32)
            word = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            word = np.uint32(0) if word < LEAST else min(word, np.uint32(MOST))
            headers[2 * chunk + side] = np.uint16(word)
        for i in range(count):
            place = start + np.int64(indices[first + i])
            large_side = np.int64(sizes[i] > used)
            negative = values[place] < 0
            fields[first + i] = np.uint8(large_side | (NEGATIVE if negative else 0))
            if lost.size:
                level = np.uint32(np.uint32(headers[2 * chunk + large_side]) << np.uint32(16)).view(
                    np.float32
                )
                lost[place] = values[place] - (-level if negative else level)
    return -1


@kernel(VOID, READ_UINT16, READ_BYTES, READ_UINT16, FLOATS32, BOOL, FLOAT32)
def _scatter(
    headers: Words, fields: Codes, indices: Words, out: Floats, add: bool, weight: np.float32
) -> None:
    for i in range(indices.size):
        chunk = i // KEPT
        field = np.int64(fields[i])
        word = np.uint32(headers[2 * chunk + (field & LARGE)])
        level = np.uint32(word << np.uint32(16)).view(np.float32)
        number = -level if field & NEGATIVE else level
        place = chunk * CHUNK + np.int64(indices[i])
        if add:
            out[place] += weight * number
        else:
            out[place] = number


def _put(parts: tuple[Words, Codes, Words], out: Tensor, add: bool, weight: np.float32) -> None:
    if out.device.type == "cpu":
        _scatter(*parts, out.numpy(), add, weight)
        return
    places, numbers = (part.to(out.device) for part in levels_eager(*parts))
    out[places] = out[places] + numbers * float(weight) if add else numbers


def _select_on_device(
    values: Tensor, headers: Words, fields: Codes, indices: Words, lost: Tensor | None
) -> int:
    finite = torch.isfinite(values)
    if not finite.all():
        return int(finite.logical_not().nonzero()[0]) // CHUNK
    headers[:], fields[:], indices[:] = select_eager(values)
    if lost is not None:
        lost.copy_(values)
        places, numbers = (part.to(lost.device) for part in levels_eager(headers, fields, indices))
        lost[places] -= numbers
    return -1


def select_eager(values: Tensor) -> tuple[Words, Codes, Words]:
    """Headers, fields and indices of finite values: what the kernel does, as plain torch on any device."""
    whole = values.numel() // CHUNK * CHUNK
    rows = [part for part in (values[:whole].view(-1, CHUNK), values[None, whole:]) if part.numel()]
    parts = [_select_rows(part, kept(part.shape[1])) for part in rows]
    empty = (np.empty(0, np.uint16), np.empty(0, np.uint8), np.empty(0, np.uint16))
    columns = zip(empty, *([part.cpu().flatten().numpy() for part in row] for row in parts), strict=True)
    headers, fields, indices = (np.concatenate(column) for column in columns)
    return headers.astype(np.uint16), fields.astype(np.uint8), indices.astype(np.uint16)


def _select_rows(rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    order = rows.abs().sort(dim=1, descending=True, stable=True).indices  # stable: of equal ones the first
    indices = order[:, :count].sort(1).values
    numbers = rows.gather(1, indices)
    sizes = numbers.abs().double()

    def sums(chosen: Tensor) -> Tensor:  # one by one, in the kernel's order
        total = torch.zeros(len(rows), 1, dtype=torch.float64, device=rows.device)
        for column in sizes.where(chosen, 0.0).unbind(1):
            total += column[:, None]
        return total

    threshold = sums(torch.ones_like(sizes, dtype=torch.bool)) / count
    large, means = sizes > threshold, threshold
    for _ in range(PASSES):
        large = sizes > threshold
        many = large.sum(1, keepdim=True)
        small_mean = sums(~large) / (count - many).clamp(min=1)
        large_mean = sums(large) / many.clamp(min=1)
        means = torch.cat([small_mean, large_mean], 1)
        threshold = (small_mean + large_mean) * 0.5
    words = means.float().view(torch.int32)
    words = (words + 0x7FFF + ((words >> 16) & 1)) >> 16
    words = words.masked_fill(words < LEAST, 0).clamp(max=MOST)
    return words, large.to(torch.uint8) | (numbers < 0).to(torch.uint8) << 1, indices


def levels_eager(headers: Words, fields: Codes, indices: Words) -> tuple[Tensor, Tensor]:
    """Where the kept numbers go, and which they are: what the kernel puts there."""
    chunk = torch.arange(len(indices), dtype=torch.int64, device="cpu") // KEPT
    places = chunk * CHUNK + torch.from_numpy(indices.astype(np.int64))
    sides = torch.from_numpy(fields)
    levels = torch.from_numpy(headers.astype(np.int32) << 16).view(torch.float32)
    numbers = levels[2 * chunk + (sides & LARGE)]
    return places, torch.where(sides & NEGATIVE > 0, -numbers, numbers)


def topk(error_feedback: bool = True, decay: float = DECAY) -> Codec:
    """The 64 largest of every 4096 numbers, in 2 bits, with entropy-coded indices."""
    warn_without(error_feedback, "topk")
    return TopK(*feedback(error_feedback, decay))


SPEC = Spec(name="topk", make=topk, about="0.157 bits per parameter, 64 of every 4096 numbers")
