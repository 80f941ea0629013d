"""What the encoded update of one chunk is, and how every peer gets the same numbers out of it.

Where the codec reduces (`reduce_scatter`), it is the mean as its reducer encoded it. Where it
doesn't (`all_gather`, sparse codecs: the mean of several sparse payloads is no sparse payload), it is
all participants' payloads in roster order, each preceded by its length, and the mean is taken by
everyone, in that order.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lowcomm.algorithms.aggregation.base import Aggregation
from lowcomm.codecs.base import Codec
from lowcomm.errors import CodecError
from lowcomm.exchanges.base import Buffer

LENGTH_BYTES = 4
"""Each payload inside an update is preceded by its length, little endian."""


def shares_of(tokens: Sequence[int]) -> list[float]:
    """Each participant's share of the tokens; equal shares where nobody has any."""
    total = sum(tokens)
    return [count / total for count in tokens] if total else [1.0 / len(tokens)] * len(tokens)


def with_length(payload: Buffer) -> tuple[bytes, Buffer]:
    """The payload and what precedes it."""
    return len(payload).to_bytes(LENGTH_BYTES, "little"), payload


def take(data: memoryview) -> tuple[memoryview, memoryview]:
    """(the first payload of `data`, what comes after it).

    Raises:
        CodecError: it is cut short.
    """
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    rest = data[LENGTH_BYTES:]
    if len(data) < LENGTH_BYTES or length > len(rest):
        raise CodecError(f"expected a payload of {length} bytes, got {len(rest)}")
    return rest[:length], rest[length:]


def join_payloads(payloads: Sequence[Buffer]) -> bytes:
    """All participants' payloads of one chunk, in roster order."""
    return b"".join(piece for payload in payloads for piece in with_length(payload))


def decode_mean(
    payload: Buffer, elements: int, codec: Codec, aggregation: Aggregation, shares: Sequence[float]
) -> Tensor:
    """The mean that a chunk of an update stands for; the same bits on every peer.

    Args:
        payload: of the chunk, without its length.
        shares: each participant's part of the tokens, in roster order.

    Raises:
        CodecError: it can't be decoded.
    """
    if codec.topology == "reduce_scatter":
        return codec.decode(payload, elements)
    rest, parts = memoryview(payload), []
    for _ in shares:
        part, rest = take(rest)
        parts.append(codec.decode(part, elements))
    if len(rest):
        raise CodecError(f"expected {len(shares)} payloads, got {len(rest)} bytes more")
    return aggregation.combine(parts, shares)


def max_update_bytes(codec: Codec, elements: int, stops: int, chunk_elements: int, participants: int) -> int:
    """The most bytes that an encoded update of `elements` numbers takes."""
    chunks = -(-elements // chunk_elements) + stops
    one = codec.max_payload_bytes(elements) + chunks * (LENGTH_BYTES + codec.max_payload_bytes(1))
    return one if codec.topology == "reduce_scatter" else participants * one + chunks * LENGTH_BYTES
