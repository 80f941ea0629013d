"""The seam of the codecs: fp32 numbers to bytes and back, exactly the same on every peer."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

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
    """

    @property
    def name(self) -> str: ...

    @property
    def topology(self) -> Topology: ...

    @property
    def block_elements(self) -> int: ...

    @property
    def error_feedback(self) -> bool: ...

    def max_payload_bytes(self, elements: int) -> int:
        """The most bytes that `encode` makes of `elements` numbers; dense codecs need exactly these."""
        ...

    def encode(self, values: Tensor) -> bytes | bytearray | memoryview:
        """Encode.

        Args:
            values: 1-D fp32, contiguous, on the host.

        Raises:
            NonFiniteError: a value is NaN or Inf.
        """
        ...

    def decode(self, payload: bytes | bytearray | memoryview, elements: int) -> Tensor:
        """Decode into a new 1-D fp32 tensor of `elements` numbers.

        Raises:
            CodecError: the payload doesn't fit `elements`, or decodes to a NaN or Inf.
        """
        ...
