"""fp32 as it is: 32 bits per parameter. The payload is the numbers; what is decoded is exact."""

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
    all_finite_32,
    checked_out,
    checked_payload,
    checked_values,
    refuse_non_finite,
)
from lowcomm.codecs.dense import add_weighted_, not_finite
from lowcomm.methods import Spec


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
                raise not_finite(self.name, start, stop)
        return out

    def decode_add(self, payload: Buffer, weight: float, total: Tensor) -> None:
        elements = checked_out(total, total.numel(), "total").numel()
        view = checked_payload(payload, elements, 4 * elements, self.name)
        for _ in _pieces_32(view, elements, self.name):
            pass  # refused before the first addition, if at all
        for start, stop, piece in _pieces_32(view, elements, self.name):
            add_weighted_(total[start:stop], piece, weight)


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
            raise not_finite(name, start, stop)
        yield start, stop, torch.from_numpy(piece)


def fp32() -> Codec:
    """The numbers as they are."""
    return Fp32()


SPEC = Spec(name="fp32", make=fp32, about="32 bits per parameter, exact")
