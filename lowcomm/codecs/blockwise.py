"""The frame of all blockwise codecs: 4 bytes of scale(s) per block, then a few bits per number.

Payload: the headers of all blocks (uint32 each; what they mean is the format's), the packed codes, and
last one byte that names the format and its version. `codes_per_byte` codes share a byte: with Q =
block_elements / codes_per_byte, byte j of a block holds the codes j, j + Q, j + 2Q ..., the first in
the lowest bits, so that packing is a few shifts of whole vectors. A last block of m numbers has
min(m, Q) bytes of codes.

A format brings two ways of doing the same, bit for bit: numba kernels for tensors on the host, and
readable torch for those on any other device. Decoding meets neither an overflow nor a denormal (which
some machines flush to zero, and torch may be told to): the headers are checked before anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowcomm.codecs.buffers import (
    Buffer,
    checked_out,
    checked_payload,
    checked_values,
    refuse_non_finite,
)
from lowcomm.errors import CodecError

HEADER_BYTES, TAG_BYTES = 4, 1

Floats = NDArray[np.float32]
Headers = NDArray[np.uint32]
Codes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """What one blockwise codec is.

    Attributes:
        tag: the payload's last byte: format in the upper half, version in the lower.
        encode: (values, headers, codes, lost) -> first block that isn't finite, or -1; `lost` is empty
            where it isn't wanted, and may be the values.
        decode: (headers, codes, out, add, weight): into `out`, or added to it.
        encode_eager: blocks (n, block_elements), zeros after the last number, and how many numbers each
            has (n, 1) -> headers (n,) as int32 or fp32, codes (n, block_elements).
        decode_eager: headers, codes -> blocks.
        refused: headers -> mask of the bad ones.
        rule: what headers have to be, for the error.
    """

    name: str
    tag: int
    block_elements: int
    codes_per_byte: int
    encode: Callable[[Floats, Headers, Codes, Floats], int]
    decode: Callable[[Headers, Codes, Floats, bool, np.float32], None]
    encode_eager: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    decode_eager: Callable[[Tensor, Tensor], Tensor]
    refused: Callable[[Headers], NDArray[np.bool_]]
    rule: str

    @property
    def row_bytes(self) -> int:
        """Bytes of codes of a whole block."""
        return self.block_elements // self.codes_per_byte

    def blocks(self, elements: int) -> int:
        return -(-elements // self.block_elements)

    def code_bytes(self, elements: int) -> int:
        whole, rest = divmod(elements, self.block_elements)
        return whole * self.row_bytes + min(rest, self.row_bytes)


@dataclass(frozen=True, slots=True)
class Blockwise:
    """A codec of some blockwise format."""

    format: Format
    error_feedback: bool = False
    decay: float = 1.0
    topology: Literal["reduce_scatter"] = "reduce_scatter"

    @property
    def name(self) -> str:
        return self.format.name

    @property
    def block_elements(self) -> int:
        return self.format.block_elements

    def max_payload_bytes(self, elements: int) -> int:
        made = self.format
        return made.blocks(elements) * HEADER_BYTES + made.code_bytes(elements) + TAG_BYTES

    def encode(self, values: Tensor, lost: Tensor | None = None) -> memoryview:
        values = checked_values(values)
        elements = values.numel()
        if lost is not None:
            lost = checked_out(lost, elements, "lost")
        payload = np.empty(self.max_payload_bytes(elements), np.uint8)
        split = self.format.blocks(elements) * HEADER_BYTES
        payload[-1] = self.format.tag
        headers, codes = payload[:split].view(np.uint32), payload[split:-TAG_BYTES]
        if values.device.type == "cpu":
            kept = np.empty(0, np.float32) if lost is None else lost.numpy()
            broken = self.format.encode(values.numpy(), headers, codes, kept)
        else:
            broken = self._encode_eager(values, headers, codes, lost)
        if broken >= 0:
            start = broken * self.block_elements
            raise refuse_non_finite(values, start, self.name)
        return payload.data

    def decode(self, payload: Buffer, elements: int, out: Tensor | None = None) -> Tensor:
        headers, codes = self._parts(payload, elements)
        out = (
            torch.empty(elements, dtype=torch.float32, device="cpu")
            if out is None
            else checked_out(out, elements, "out")
        )
        if out.device.type == "cpu":
            self.format.decode(headers, codes, out.numpy(), False, np.float32(1))
        else:
            out.copy_(decode_eager(self.format, headers, codes, elements, out.device))
        return out

    def decode_add(self, payload: Buffer, weight: float, total: Tensor) -> None:
        elements = total.numel()
        total = checked_out(total, elements, "total")
        headers, codes = self._parts(payload, elements)
        if total.device.type == "cpu":
            self.format.decode(headers, codes, total.numpy(), True, np.float32(weight))
        else:
            decoded = decode_eager(self.format, headers, codes, elements, total.device)
            total.add_(decoded.mul_(float(np.float32(weight))))

    def _parts(self, payload: Buffer, elements: int) -> tuple[Headers, Codes]:
        """Headers and codes of a payload in which nothing is left to be refused."""
        view = checked_payload(payload, elements, self.max_payload_bytes(max(elements, 0)), self.name)
        if view[-1] != self.format.tag:
            raise CodecError(
                f"{self.name}: expected a payload that ends with 0x{self.format.tag:02x}, its format and "
                f"version, got 0x{view[-1]:02x}: another codec or version of lowcomm sent it"
            )
        split = self.format.blocks(elements) * HEADER_BYTES
        headers = np.frombuffer(view[:split], np.uint8).copy().view(np.uint32)  # payloads may be unaligned
        refused = self.format.refused(headers)
        if refused.any():
            block = int(refused.argmax())
            raise CodecError(
                f"{self.name}: expected {self.format.rule}, got 0x{headers[block]:08x} for block {block}"
            )
        return headers, np.frombuffer(view[split:-TAG_BYTES], np.uint8)

    def _encode_eager(self, values: Tensor, headers: Headers, codes: Codes, lost: Tensor | None) -> int:
        finite = torch.isfinite(values)
        if not finite.all():
            return int(finite.logical_not().nonzero()[0]) // self.block_elements
        headers[:], codes[:] = encode_eager(self.format, values)
        if lost is not None:
            decoded = decode_eager(self.format, headers, codes, values.numel(), values.device)
            torch.sub(values, decoded, out=lost)
        return -1


def encode_eager(made: Format, values: Tensor) -> tuple[Headers, Codes]:
    """What the kernel of `made` does with finite values, as plain torch on their device."""
    elements, width = values.numel(), made.block_elements
    blocks = torch.nn.functional.pad(values, (0, made.blocks(elements) * width - elements)).view(-1, width)
    counts = torch.full((len(blocks), 1), width, dtype=torch.int64, device=values.device)
    if elements % width:
        counts[-1] = elements % width
    headers, codes = made.encode_eager(blocks, counts)
    bits = 8 // made.codes_per_byte
    rows = codes.to(torch.uint8).view(len(blocks), made.codes_per_byte, made.row_bytes)
    packed = rows[:, 0].clone()
    for place in range(1, made.codes_per_byte):
        packed |= rows[:, place] << (bits * place)
    flat = packed.flatten()[: made.code_bytes(elements)]
    return headers.cpu().numpy().view(np.uint32), flat.cpu().numpy()


def decode_eager(
    made: Format, headers: Headers, codes: Codes, elements: int, device: torch.device | str = "cpu"
) -> Tensor:
    """What the kernel of `made` does with a checked payload, as plain torch on any device."""
    blocks, bits = made.blocks(elements), 8 // made.codes_per_byte
    padded = np.zeros(blocks * made.row_bytes, np.uint8)
    padded[: len(codes)] = codes
    packed = torch.from_numpy(padded).to(device).view(blocks, 1, made.row_bytes)
    rows = [packed >> (bits * place) for place in range(made.codes_per_byte)]
    fields = torch.cat(rows, 1).view(blocks, made.block_elements) & ((1 << bits) - 1)
    levels = made.decode_eager(torch.from_numpy(headers.view(np.int32)).to(device), fields)
    return levels.flatten()[:elements]


def refused_scales(least: int, most: int) -> Callable[[Headers], NDArray[np.bool_]]:
    """For headers that are fp32 scales: neither 0 nor between these bits; positive fp32 sort as bits."""

    def refused(headers: Headers) -> NDArray[np.bool_]:
        bad: NDArray[np.bool_] = (headers != 0) & ((headers < least) | (headers > most))
        return bad

    return refused
