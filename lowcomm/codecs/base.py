"""The seam of the codecs: fp32 numbers to bytes and back, exactly the same on every peer."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from lowcomm.codecs.buffers import Buffer

Topology = Literal["reduce_scatter", "all_gather"]


class Codec(Protocol):
    """Encodes a 1-D fp32 tensor; decoding is deterministic, bit for bit, on any machine.

    Attributes:
        name: as in `shared.codec.name`.
        topology: `reduce_scatter` for payloads whose mean can be encoded again, `all_gather` for
            sparse ones that every peer sums by itself.
        block_elements: ranges and chunks are cut at multiples of it, so that the encoding of a
            tensor doesn't depend on where it was cut.
        error_feedback: whether senders keep what the encoding lost and add it to the next round.
        decay: the residual is multiplied by it before it is added (1 = kept whole).
    """

    @property
    def name(self) -> str: ...

    @property
    def topology(self) -> Topology: ...

    @property
    def block_elements(self) -> int: ...

    @property
    def error_feedback(self) -> bool: ...

    @property
    def decay(self) -> float: ...

    def max_payload_bytes(self, elements: int) -> int:
        """The most bytes that `encode` makes of `elements` numbers; dense codecs need exactly these."""
        ...

    def encode(self, values: Tensor, lost: Tensor | None = None) -> Buffer:
        """Encode.

        Args:
            values: 1-D fp32, on the host or a CUDA device.
            lost: receives `values - decode(encode(values))`, in the same pass; of the size and device of
                `values`, contiguous, and may be `values` itself. After an error it holds anything.

        Raises:
            CodecError: a tensor that can't be used.
            NonFiniteError: a value is NaN or Inf.
        """
        ...

    def decode(self, payload: Buffer, elements: int, out: Tensor | None = None) -> Tensor:
        """Decode into `out`, or into a new tensor on the host.

        Args:
            payload: what `encode` made, or anything that somebody sent.
            elements: how many numbers it has to be.
            out: 1-D fp32, contiguous, of `elements` numbers; after an error it holds anything.

        Raises:
            CodecError: the payload doesn't fit `elements`, or decodes to a NaN or Inf.
        """
        ...

    def decode_add(self, payload: Buffer, weight: float, total: Tensor) -> None:
        """Add `weight` times what is decoded to `total`: fp32, multiply and add apart, element by element.

        Args:
            payload: as for `decode`.
            weight: rounded to fp32 first.
            total: 1-D fp32, contiguous; its size says how many numbers the payload must have. Where a
                sparse payload has no number it isn't touched.

        Raises:
            CodecError: as in `decode`; `total` is as it was then.
        """
        ...
